"""Scores of images: one for each, whatever the chunks, under their own labels or a given one; and what has none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diffpipe.data.index.write_index import write_index
from diffpipe.diffusion.vlb import VLBScore
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.likelihood import (
    Likelihoods,
    labelled_images,
    require_likelihood,
    score_images,
    scoring_stage,
)
from diffpipe.interfaces import Batch, Score
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPM
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, indexed_shards, opened_run
from tests.support.stage_cases import CASES, SHAPE
from tests.support.tars import png, random_pixels, write_tar
from tests.support.toy_stages import Toy

N = 70  # a whole chunk and a part of one
PIXELS = random_pixels(0, (N, 1, 8, 8))
MEANS = PIXELS.mean((1, 2, 3))
LABELS = torch.arange(N) % 3
IMAGES = TensorImages(torch.from_numpy(PIXELS), LABELS)


class ByLabel(Coder):
    """The label and noise; the terms by timestep are the mean pixel and its double."""

    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        assert batch.labels is not None
        mean = batch.images.float().mean((1, 2, 3))
        return VLBScore(
            per_sample=batch.labels + rng.normal("noise", ()),
            unit="bits/dim",
            kind="bound",
            by_timestep=torch.stack([mean, 2 * mean], dim=1),
            strata=[range(1), range(1, 10)],
        )


def test_each_image_has_its_score_in_order_and_the_mean_has_an_error(tmp_path: Path, runtime: Runtime) -> None:
    likelihoods = score_images(opened_run(Coder(), tmp_path, case="latent_vae"), IMAGES, 0, runtime)
    assert (likelihoods.n, likelihoods.unit, likelihoods.kind) == (N, "bits/dim", "exact")
    assert likelihoods.vlb_by_timestep is None
    np.testing.assert_allclose(likelihoods.values["score"].numpy(), MEANS, rtol=1e-6)
    assert likelihoods.mean("half") == pytest.approx(MEANS.mean() / 2)
    assert likelihoods.standard_error("score") == pytest.approx(stats.sem(MEANS), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "remark"),
    [([], "1,000"), (["stage.sampler.vlb_steps=300"], "300"), (["stage.sampler.vlb_steps=9"], None)],
)
def test_a_bound_of_many_evaluations_says_so_before_it_begins(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str], words: list[str], remark: str | None
) -> None:
    experiment = CASES["ddpm"].experiment(f"run.dir={tmp_path}", "stage.schedule.steps=1000", *words)
    stage = experiment.stage.build(SHAPE, {})
    assert isinstance(stage, DDPM)
    run = opened_run(stage, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "score", Coder().score)
        score_images(run, IMAGES, 0, runtime, title="nll")
    error = capsys.readouterr().err
    if remark is None:
        assert "evaluations" not in error
    else:
        assert f"nll: 70 images, {remark} network evaluations for each; fewer steps are faster" in error


def test_a_given_label_is_compared_with_the_own_one_under_the_same_noise(tmp_path: Path, runtime: Runtime) -> None:
    run = opened_run(ByLabel(), tmp_path)
    own = score_images(run, IMAGES, 4, runtime)
    given = score_images(run, IMAGES, 4, runtime, label=2)
    torch.testing.assert_close(given.values["score"] - own.values["score"], 2 - LABELS.double(), rtol=0, atol=1e-6)
    noise = (own.values["score"] - LABELS).numpy()
    assert len(np.unique(noise.round(6))) == N
    assert own.vlb_by_timestep is not None
    assert own.vlb_by_timestep.strata == [range(1), range(1, 10)]
    np.testing.assert_allclose(own.vlb_by_timestep.terms.numpy(), [MEANS.mean(), 2 * MEANS.mean()], rtol=1e-6)


def test_a_class_conditional_run_needs_labels_that_it_knows(tmp_path: Path) -> None:
    shards = indexed_shards(tmp_path / "shards", 6)
    images = labelled_images(shards, opened_run(Coder(), tmp_path, classes=3), 6)
    assert images.labels(range(6)).tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UserError, match="holds 3 classes and the run was trained on 2"):
        labelled_images(shards, opened_run(Coder(), tmp_path, classes=2), 6)
    (tmp_path / "bare").mkdir()
    write_tar(tmp_path / "bare" / "0.tar", {"0.png": png(random_pixels(0))})
    write_index(tmp_path / "bare")
    bare = str(tmp_path / "bare")
    with pytest.raises(UserError, match="the run is class-conditional and some samples have no label"):
        labelled_images(bare, opened_run(Coder(), tmp_path), 1)
    assert labelled_images(bare, opened_run(Coder(), tmp_path, case="latent_vae"), 1).n == 1


def test_a_run_without_a_likelihood_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage\.kind ddpm has no likelihood and no error"):
        scoring_stage(opened_run(Toy(), tmp_path))
    codes = CASES["autoregressive, codes"].stage()
    with pytest.raises(UserError, match=r"models the codes of .*, and their probability is no likelihood of images"):
        scoring_stage(opened_run(codes, tmp_path, case="autoregressive, codes"))
    coder = opened_run(Coder("error"), tmp_path)
    assert scoring_stage(coder) is coder.stage
    with pytest.raises(UserError, match="has an error and no likelihood"):
        scoring_stage(coder, likelihood=True)
    infinite = Likelihoods({"score": torch.tensor([1.0, torch.inf]).double()}, "bits/dim", "exact", None)
    with pytest.raises(UserError, match="1 of 2 likelihoods are not finite"):
        require_likelihood(infinite, coder)
    with pytest.raises(UserError, match="has an error and no likelihood"):
        require_likelihood(infinite._replace(kind="error"), coder)
