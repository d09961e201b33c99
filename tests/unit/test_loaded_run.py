"""A loaded run: likelihoods of images in memory, and arguments that are refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffpipe
from diffpipe import loaded_run, plugins
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.experiment.run import Run
from diffpipe.resolution import square
from tests.support.commands import SHARDS
from tests.support.runs import indexed_shards


def test_likelihoods_of_images_in_memory_are_those_of_shards(tiny_run: Path, tmp_path: Path) -> None:
    run, shards = diffpipe.load(tiny_run), indexed_shards(tmp_path, 4)
    images = sequential_reader.images(shard_set.load(shards), range(4), square(8), 1)
    of_shards = run.nll(shards, n=4, steps=2)
    in_memory = run.nll(images, steps=2, labels=torch.tensor([0, 1, 2, 0]))
    assert torch.equal(in_memory.likelihoods.values["score"], of_shards.likelihoods.values["score"])
    assert in_memory.result.scores == of_shards.result.scores
    assert in_memory.result.protocol["reference"]["shape"] == [4, 1, 8, 8]
    with pytest.raises(UserError, match="give the labels of the images"):
        run.nll(images, steps=2)
    with pytest.raises(UserError, match="n is 1; a standard error needs at least 2"):
        run.nll(images[:1], steps=2, labels=torch.tensor([0]))


def unchecked(method: Any) -> Callable[..., Any]:
    """A bound method as users have it: without the checks of types that tests add to it."""
    return functools.partial(inspect.unwrap(method.__func__), method.__self__)


REFUSED_IMAGES = {
    "floats": (torch.zeros(2, 1, 8, 8), r"torch\.float32 \[2, 1, 8, 8\]; give a torch tensor of uint8"),
    "another size": (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"\[n, 1, 8, 8\] as the run was trained on"),
    "one image": (torch.zeros(1, 8, 8, dtype=torch.uint8), r"the images are torch\.uint8 \[1, 8, 8\]"),
    "an array": (np.zeros((2, 1, 8, 8), np.uint8), "the images are ndarray"),
}


@pytest.mark.parametrize("case", REFUSED_IMAGES)
def test_tensors_that_are_no_images_of_the_run_are_refused(tiny_run: Path, case: str) -> None:
    images, words = REFUSED_IMAGES[case]
    with pytest.raises(UserError, match=words):
        unchecked(diffpipe.load(tiny_run).nll)(images, labels=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), r"the labels are torch\.int64 \[3\]; give .* \[2\], one label per image"),
        (torch.zeros(2), r"the labels are torch\.float32"),
        (torch.tensor([0, 10]), "the labels are 0 to 10; this run has 10 classes"),
        ([0, 1], "the labels are list"),
    ],
)
def test_labels_that_the_run_cannot_have_are_refused(tiny_run: Path, labels: Any, words: str) -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=words):
        unchecked(diffpipe.load(tiny_run).nll)(images, labels=labels)


def test_arguments_that_would_have_no_effect_are_refused(tiny_run: Path) -> None:
    run, images = diffpipe.load(tiny_run), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="n is for shards"):
        run.nll(images, n=1)
    with pytest.raises(UserError, match="shards have labels of their own"):
        run.nll("shards", labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="metrics is 'fid'; give a list"):
        run.score(SHARDS / "test", n=2, metrics="fid", floor="split")
    with pytest.raises(UserError, match="overrides is 'a=b'; give a list"):
        diffpipe.load(tiny_run, overrides="a=b")


def test_a_score_against_training_images_says_so(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = lambda images: images.float().mean((2, 3))  # noqa: E731
    monkeypatch.setitem(plugins._parts, "feature_networks", {"grey": network})
    run = diffpipe.load(tiny_run)
    run.score(SHARDS / "test" / "test-000000.tar", n=2, metrics=["fd_grey"], steps=2)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert ["fd_grey is of 2 images" in notes[0], "shards that the run was trained on" in notes[1]] == [True, True]
    run.score(SHARDS / "train" / "train-000000.tar", n=2, metrics=["fd_grey"], steps=2)
    assert "trained on" not in capsys.readouterr().err


@pytest.mark.parametrize("n", [0, -1])
def test_numbers_of_images_below_one_are_refused(tiny_run: Path, tmp_path: Path, n: int) -> None:
    run, shards = diffpipe.load(tiny_run), indexed_shards(tmp_path / "shards", 4)
    for measure in (
        lambda: run.sample(n),
        lambda: run.write_samples(tmp_path / "out", n),
        lambda: run.nll(shards, n=n, steps=2),
        lambda: diffpipe.score(shards, shards, n=n),
    ):
        with pytest.raises(UserError, match=f"n is {n}; give 1 or more images"):
            measure()
    assert not (tmp_path / "out").exists()


def test_folders_may_be_strings(tiny_run: Path, tmp_path: Path) -> None:
    run = diffpipe.load(tiny_run)
    run.export(str(tmp_path / "weights"))
    run.write_samples(str(tmp_path / "samples"), 1)
    assert (tmp_path / "weights" / "denoiser.safetensors").exists()
    assert (tmp_path / "samples" / "000000.png").exists()


@pytest.mark.parametrize(("precision", "copied"), [("fp32", False), ("bf16", True)])
def test_compression_copies_the_networks_only_into_another_memory_format(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, copied: bool
) -> None:
    compressed: list[Run] = []
    monkeypatch.setattr(loaded_run, "compress_shards", lambda run, *_, **__: compressed.append(run))
    run = diffpipe.load(tiny_run, precision=precision, device="cpu")
    unchecked(run.compress)("shards", "images.dpi")
    assert (compressed[0].nets["denoiser"] is not run.networks["denoiser"]) == copied


def test_a_run_with_overrides_that_decompression_does_not_have_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = diffpipe.load(tiny_run, overrides=["stage.sampler.clip=false"])
    with pytest.raises(UserError, match=r"to compress, load it without stage\.sampler\.clip=false"):
        run.compress("shards", tmp_path / "images.dpi")
