"""Uninterrupted runs, to compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

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
