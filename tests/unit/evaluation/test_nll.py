"""The mean negative log-likelihood with its standard error, of images in memory and of shards; and what has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.nll import measure_nll
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, Noise, indexed_shards, opened_run
from tests.support.tars import random_pixels

N = 20
PIXELS = np.stack([random_pixels(i) for i in range(N)])[:, None]
MEANS = PIXELS.mean((1, 2, 3))
IMAGES = TensorImages(torch.from_numpy(PIXELS), torch.zeros(N, dtype=torch.int64))


def test_the_mean_has_its_standard_error_its_terms_and_its_protocol(tmp_path: Path, runtime: Runtime) -> None:
    nll = measure_nll(opened_run(Noise("bound"), tmp_path), IMAGES, runtime, n=N, seed=3)
    mean, error = MEANS.mean(), stats.sem(MEANS)
    assert nll.result.scores == pytest.approx({"nll": mean, "nll_standard_error": error, "half": mean / 2}, rel=1e-5)
    assert nll.table().splitlines() == [
        f" nll  {mean:.3f} ± {error:.3f} bits/dim (bound; {N} images)",
        f"half  {mean / 2:.3f} ± {error / 2:.3f} bits/dim",
    ]
    model = nll.result.protocol["model"]
    assert (model["kind"], model["seed"], model["precision"], model["step"]) == ("bound", 3, "float32", 10)
    assert nll.result.protocol["reference"] == {"n": N, **IMAGES.describe()}


def test_images_in_shards_have_the_likelihood_of_the_same_ones_in_memory(tmp_path: Path, runtime: Runtime) -> None:
    run, shards = opened_run(Noise(), tmp_path), indexed_shards(tmp_path / "shards", N - 5, 5)
    assert measure_nll(run, shards, runtime, n=N, seed=0).result.scores["nll"] == pytest.approx(MEANS.mean(), rel=1e-6)
    some = measure_nll(run, shards, runtime, n=7, seed=0)
    assert some.likelihoods.n == some.result.protocol["reference"]["n"] == 7


def test_an_error_is_no_likelihood_and_one_image_has_no_standard_error(tmp_path: Path, runtime: Runtime) -> None:
    for stage in (Coder(), Noise("error")):
        with pytest.raises(UserError, match="has an error and no likelihood"):
            measure_nll(opened_run(stage, tmp_path), IMAGES, runtime, n=N, seed=0)
    one = TensorImages(IMAGES.images(range(1)), IMAGES.labels(range(1)))
    with pytest.raises(UserError, match="n is 1; a standard error needs at least 2 images"):
        measure_nll(opened_run(Noise(), tmp_path), one, runtime, n=1, seed=0)
