"""Reconstructed images and their score, with a toy whose reconstruction is the negative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.evaluation import reconstruction as module
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.reconstruction import (
    ReconstructedImages,
    held_out_images,
    in_words,
    originals,
    reconstruction,
)
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import random_pixels
from tests.support.toy_stages import Toy

N = 12
PIXELS = np.stack([random_pixels(i) for i in range(N)])[:, None]


def quadrants(images: Tensor) -> Tensor:
    """The mean of each quarter: a linear feature network."""
    return F.adaptive_avg_pool2d(images[:, 0].float(), 2).flatten(1)


def test_a_reconstruction_is_that_of_the_image_with_its_index(runtime: Runtime) -> None:
    real = TensorImages(torch.from_numpy(PIXELS))
    images = ReconstructedImages(Coder(), {}, real, runtime, 5, {"step": 3})
    assert images.n == N
    assert np.array_equal(images.images(range(4, 9)).numpy(), 255 - PIXELS[4:9])
    about: dict[str, Any] = {"seed": 5, "precision": "float32", "step": 3}
    assert images.describe() == {"images": "reconstructions of the reference", **about}


def test_the_score_is_the_distance_of_the_features_means_where_their_covariances_are_equal(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins._parts, "feature_networks", {"quadrants": quadrants})
    monkeypatch.setattr(module, "METRIC", "fd_quadrants")
    held_out = indexed_shards(tmp_path / "test", N)
    experiment = CASES["ddpm"].experiment(f"run.dir={tmp_path}", f"data.test={held_out}", f"eval.reconstruction={N}")
    tree = reconstruction(experiment, Coder(), {}, runtime, {"weights": "ema"})
    means = quadrants(torch.from_numpy(PIXELS)).double().mean(0)
    assert tree["scores"] == {"fd_quadrants": pytest.approx((255 - 2 * means).square().sum().item(), rel=1e-4)}
    generated = tree["protocol"]["generated"]
    assert (generated["n"], generated["weights"], tree["protocol"]["reference"]["n"]) == (N, "ema", N)
    assert in_words(tree) == f"reconstruction FD {tree['scores']['fd_quadrants']:.1f} (quadrants, n {N})"
    assert in_words(None).startswith("no reconstruction FD")


def test_the_held_out_images_are_taken_where_there_are_some(tmp_path: Path) -> None:
    trained, held_out = indexed_shards(tmp_path / "train", 5), indexed_shards(tmp_path / "test", 4)
    words = (f"run.dir={tmp_path}", f"data.train={trained}")
    assert held_out_images(CASES["ddpm"].experiment(*words, f"data.test={held_out}")).total == 4
    assert held_out_images(CASES["ddpm"].experiment(*words, "data.test=null")).total == 5


def test_what_has_no_reconstruction_score_is_refused(tmp_path: Path) -> None:
    words = (f"run.dir={tmp_path}", f"data.test={indexed_shards(tmp_path / 'test', 4)}")
    four = CASES["ddpm"].experiment(*words, "eval.reconstruction=4")
    assert originals(four, Coder()).n == 4
    with pytest.raises(UserError, match=r"stage\.kind ddpm reconstructs none; set eval\.reconstruction=0"):
        originals(four, Toy())
    with pytest.raises(UserError, match=r"eval\.reconstruction is 3, and a score needs 4 images or more"):
        originals(CASES["ddpm"].experiment(*words, "eval.reconstruction=3"), Coder())
    with pytest.raises(UserError, match=r"eval\.reconstruction: .* hold 4 images, fewer than 5"):
        originals(CASES["ddpm"].experiment(*words, "eval.reconstruction=5"), Coder())
