"""The runs that nothing happens to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_jobs import trains

STEPS = 24


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """By the number of processes, a run with a checkpoint of each of its 24 steps, never interrupted."""

    @functools.cache
    def run(processes: int) -> Path:
        made = tmp_path_factory.mktemp("straight")
        words = [f"train.steps={STEPS}", "checkpoint.every=1", f"checkpoint.keep_last={STEPS}"]
        trains(made, *words, processes=processes)
        return made

    return run
