"""Two jobs in one run directory: the second is refused, and the first is not harmed."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.support.commands import CONFIG, TINY, metrics, refused, train

SMALL = [*TINY, "data.resolution=8", "sample.every=0", "eval.every=0"]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_second_job_is_refused_and_touches_nothing(tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    train(run, *SMALL, "train.steps=2")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with (run / ".lock").open("a+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        words = [CONFIG, f"run.dir={run}", *SMALL, "train.steps=4"]
        assert "another job trains in" in refused("train", *words, processes=processes)
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    train(run, *SMALL, "train.steps=4", processes=processes)  # the lock of a dead process blocks no job
    assert max(metrics(run)) == 4


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a directory")
    assert "give another run.dir" in refused("train", CONFIG, f"run.dir={tmp_path / 'run'}", *SMALL, "train.steps=2")
