"""A checkpoint of format 1, as version 0.1.0 wrote it on two processes, goes on under today's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpipe.experiment.run import open_run
from diffpipe.train.checkpoint import load
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from tests.support.commands import CONFIG, HOME, metrics, refused, seen, succeeds, tensors

FIXTURE = HOME / "tests" / "fixtures" / "format_1"
NETWORK = "stage.network={channels: 4, channel_mult: [1, 2], attention: [], groups: 2, blocks: 1, dropout: 0.0}"
WORDS = [CONFIG, NETWORK, "data.workers=0", "data.resolution=8", "data.batch_size=8", "optimizer.decay=constant"]
WORDS += ["optimizer.lr_factors={denoiser: 1.5}", "train.log_every=1", "train.precision=fp32", "stage.sampler.steps=3"]
WORDS += ["data.max_bad_samples=3", "train.record_samples=true"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with that checkpoint in it."""
    shutil.copytree(FIXTURE / "step-00000004", tmp_path / "run" / "checkpoints" / "step-00000004")
    return tmp_path / "run"


def test_its_tensors_are_read_under_todays_names(run: Path) -> None:
    with Runtime.start("fp32", "cpu") as runtime:
        checkpoint = open_run(run, [], runtime).checkpoint
    stored = tensors(checkpoint.path)
    assert {name.split(".")[1] for name in stored} == {"unet"}
    into = {name.replace("unet", "denoiser"): torch.empty(t.shape) for name, t in stored.items()}
    load(checkpoint, into, Communicator())
    for name, tensor in stored.items():
        assert np.array_equal(into[name.replace("unet", "denoiser")].numpy(), tensor), name


def test_it_is_resumed_and_saved_in_todays_format(run: Path) -> None:
    said = succeeds("train", *WORDS, f"run.dir={run}", "train.steps=6", "checkpoint.every=1")
    assert f"resuming from {run}/checkpoints/step-00000004" in said
    assert sorted(metrics(run)) == [5, 6]
    assert {k: sorted(positions) for k, positions in seen(run).items()} == {4: [*range(32, 40)], 5: [*range(40, 48)]}
    newest = run / "checkpoints" / "step-00000006"
    assert json.loads((newest / "manifest.json").read_text())["format"] == 3
    assert json.loads((newest / "state.json").read_text())["format"] == 3
    assert json.loads((newest / "state.json").read_text())["experiment"]["data"]["order_version"] == 1
    assert {name.split(".")[1] for name in tensors(newest)} == {"denoiser"}


def test_what_a_resume_may_not_change_is_compared_with_it(run: Path) -> None:
    line = refused("train", *WORDS, f"run.dir={run}", "train.steps=6", "optimizer.lr=0.5", "data.shuffle_window=64")
    assert "data.shuffle_window was 16384 and is 64, optimizer.lr was 0.001 and is 0.5" in line
    line = refused("train", *WORDS, f"run.dir={run}", "stage.network.channels=8", "train.steps=6")
    assert "of another model: stage.network.channels was 4 and is 8" in line


def test_it_samples(run: Path, tmp_path: Path) -> None:
    succeeds("sample", run, tmp_path / "images", "--n", 2, "--steps", 2)
    assert (tmp_path / "images" / "000001.png").exists()
