"""Uninterrupted runs, to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_words import SMALL
from tests.support.commands import HOME, diffpipe, train
from tests.support.training_jobs import train_to_end

STEPS = 24


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By the number of processes, a run with a checkpoint of each of its 24 steps, never interrupted."""

    @functools.cache
    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        words = [f"train.steps={STEPS}", "checkpoint.every=1", f"checkpoint.keep_last={STEPS}"]
        train_to_end(folder, *words, processes=processes)
        return folder

    return run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a diffusion and of a VAE, a VAE to encode by, a folder of images, their shards, and a file of them."""
    home = tmp_path_factory.mktemp("inputs")
    train(home / "ddpm", *SMALL)
    train(
        home / "vae",
        *SMALL,
        "data.labels=true",
        "stage.conditional=false",
        config=HOME / "configs" / "fashion_mnist" / "vae.yaml",
    )
    train(home / "codec", *SMALL, config=HOME / "configs" / "fashion_mnist" / "latent_vae.yaml")
    assert diffpipe("sample", home / "ddpm", home / "images", "--n", 9).returncode == 0
    (home / "images" / "grid.png").unlink()
    assert diffpipe("pack", home / "images", home / "small").returncode == 0
    assert diffpipe("compress", home / "vae", home / "small", home / "compressed", "--no-comparison").returncode == 0
    return {path.name: path for path in home.iterdir()}
