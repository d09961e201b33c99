"""Classes by likelihood, with a stage whose Bayes posterior and accuracy are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from torch import nn

from diffpipe.config import validate
from diffpipe.data.index import shard_set
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.evaluation.classification import classify, log_likelihoods, log_prior
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import Run
from diffpipe.interfaces import Batch, ImageShape, Score, Scores
from diffpipe.report.classification_plot import plot_classification
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime
from tests.support.run_states import run_state
from tests.support.thread_ranks import on_ranks
from tests.support.toy_stages import Toy

N, SIZE, STD = 400, 4, 48.0
MEANS = (124.0, 136.0)
DIMS = SIZE * SIZE
UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
REST = {"run": {"dir": "x"}, "data": {"train": "x", "batch_size": 4, "resolution": 8}, "train": {"steps": 1}}


class Gaussians(Toy):
    """Class y has pixels N(MEANS[y], STD²), independent; noise that is the image's alone is added to what it says."""

    def __init__(self, factor: float = 1.0, kind: str = "exact"):
        self.factor, self.kind = factor, kind

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        assert batch.labels is not None
        mean = torch.tensor(MEANS)[batch.labels][:, None, None, None]
        nats = (0.5 * ((batch.images - mean) / STD).square() + math.log(STD * math.sqrt(2 * math.pi))).sum((1, 2, 3))
        nats = self.factor * (nats + 50 * rng.normal("noise", ()))
        return Score(nats / (DIMS * math.log(2)), "bits/dim", self.kind)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of both classes, three of the first to one of the second."""
    home = tmp_path_factory.mktemp("gaussians")
    rng = np.random.default_rng(0)
    for i in range(N):
        y = int(i % 4 == 0)
        folder = home / "images" / f"{y}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(MEANS[y], STD, (SIZE, SIZE)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    pack(FolderSource(home / "images"), home / "shards")
    return home / "shards"


def opened(stage: Gaussians, shards: Path) -> Run:
    tree = {
        "run": {"dir": "x"},
        "data": {"train": str(shards), "batch_size": 4, "resolution": SIZE, "channels": 1, "labels": True},
        "stage": {"kind": "vae", "conditional": True},
        "train": {"steps": 1},
    }
    found = Checkpoint(Path("x/checkpoints/step-00000001"), run_state(1, position=4), "0" * 64)
    return Run(found, validate(Experiment, tree, "test"), ImageShape(1, square(SIZE), 2), stage, {}, "ema")


def images(shards: Path) -> ShardImages:
    return ShardImages(shard_set.load(str(shards)), 1, square(SIZE))


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.start("fp32", "cpu")


def exact(source: ShardImages) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x, y) up to what both classes share, from the sum of the pixels; and the true classes."""
    x, y = source.images(range(source.n)).double(), source.labels(range(source.n))
    slope = (MEANS[1] - MEANS[0]) / STD**2
    odds = slope * (x - (MEANS[0] + MEANS[1]) / 2).sum((1, 2, 3)) + math.log(101 / 301)
    return torch.stack([torch.zeros_like(odds), odds], 1), y


def test_the_posterior_and_the_accuracy_are_those_of_bayes(shards: Path, runtime: Runtime) -> None:
    run, source = opened(Gaussians(), shards), images(shards)
    logits = log_likelihoods(run, source, 0, runtime) + log_prior(run, "data")
    expected, labels = exact(source)
    # The noise is ±50 nats an image, the same for both labels: what is left of it is rounding to float32.
    torch.testing.assert_close(logits.softmax(1), expected.softmax(1), atol=1e-4, rtol=0)
    found = classify(logits, labels, seed=0)
    distance = (MEANS[1] - MEANS[0]) * SIZE / STD  # between the classes, in standard deviations of the pixels' mean
    cut = distance / 2 + math.log(3) / distance
    bayes = 0.75 * norm.cdf(cut) + 0.25 * norm.cdf(distance - cut)
    assert found.right / N == pytest.approx(bayes, abs=3 * math.sqrt(bayes * (1 - bayes) / N))
    assert found.confusion.sum(1).tolist() == [300, 100]
    assert found.raw.reliability.count.sum() == N / 2
    assert found.temperature == pytest.approx(1, abs=0.4)
    assert found.tempered.reliability.error < 0.1


def test_a_likelihood_that_counts_everything_nine_times_is_repaired(shards: Path, runtime: Runtime) -> None:
    run, source = opened(Gaussians(factor=9), shards), images(shards)
    _, labels = exact(source)
    found = classify(log_likelihoods(run, source, 0, runtime) + log_prior(run, "uniform"), labels, seed=0)
    assert found.raw.reliability.error > 0.2
    assert found.tempered.reliability.error < 0.1
    assert found.tempered.log_loss < 0.5 * found.raw.log_loss
    assert "far too sure" in found.table()
    assert f"{found.right / N:.4f} (" in found.table()
    assert plot_classification(found, ["a", "b"], "title").axes[0].get_xticklabels()[1].get_text() == "b"


def test_a_run_is_called_by_its_directory_and_step(shards: Path) -> None:
    run = opened(Gaussians(), shards)
    assert (run.home, run.title) == (Path("x"), "x, step 1")


def test_the_prior_is_the_training_datas_or_uniform(shards: Path) -> None:
    run = opened(Gaussians(), shards)
    assert log_prior(run, "data").exp().tolist() == pytest.approx([301 / 402, 101 / 402])
    assert log_prior(run, "uniform").exp().tolist() == pytest.approx([0.5, 0.5])
    lost = opened(Gaussians(), shards / "absent")
    with pytest.raises(UserError, match=r"prior data needs the labels of .*give another prior: SHARDS or uniform"):
        log_prior(lost, "data")


def test_an_error_is_no_likelihood(shards: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match="has an error"):
        log_likelihoods(opened(Gaussians(kind="error"), shards), images(shards), 0, runtime)


def test_the_likelihoods_do_not_depend_on_the_number_of_processes(shards: Path, runtime: Runtime) -> None:
    run, source = opened(Gaussians(), shards), images(shards)
    alone = log_likelihoods(run, source, 0, runtime)
    for each in on_ranks(3, lambda rank: log_likelihoods(run, source, 0, rank)):
        assert torch.equal(each, alone)


STAGES = {
    "ddpm": {"kind": "ddpm", "network": UNET, "sampler": {"vlb_steps": 4}},
    "flow": {"kind": "flow", "network": {"kind": "glow", "levels": 1, "steps": 1, "hidden": 8}},
    "vae": {"kind": "vae", "network": {"channels": 8, "channel_mult": (1, 2), "groups": 4}},
}


@pytest.mark.parametrize("kind", STAGES)
def test_every_stage_meets_every_label_with_the_same_noise(kind: str) -> None:
    # Networks that do not look at the label say the same of an image under each, to the last bit: so do those of a
    # diffusion and of a flow as they start, and the VAE's without its table of labels.
    experiment = {"stage": STAGES[kind] | {"conditional": True}}
    stage = validate(Experiment, REST | experiment, "test").stage.build(ImageShape(1, square(8), 3))
    nets = {name: net.eval() for name, net in stage.networks().items()}
    if kind == "vae":
        for net in nets.values():
            net.label.weight.data.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(5)

    def score(label: int, seed: int) -> torch.Tensor:
        batch = Batch(pixels, torch.full((5,), label), positions, list("abcde"))
        assert isinstance(stage, Scores)
        return stage.score(nets, batch, KeyedRNG(seed, positions)).per_sample

    assert torch.equal(score(0, 0), score(1, 0))
    assert torch.equal(score(0, 0), score(2, 0))
    assert not torch.equal(score(0, 0), score(0, 1))
