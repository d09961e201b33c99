"""A loader process is killed, as by the kernel when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_jobs import TrainingJob, assert_equals_uninterrupted, train_to_end


@pytest.mark.parametrize("processes", [0, 2])
def test_a_killed_loader_process_ends_the_job_promptly_and_clearly(
    tmp_path: Path, processes: int, uninterrupted: Callable[[int], Path]
) -> None:
    job = TrainingJob(tmp_path, "train.steps=5000", "checkpoint.every=2", "data.workers=1", processes=processes)
    job.wait_until_step(5)
    (worker,) = job.ranks[-1].children()
    worker.kill()
    killed = time.monotonic()
    status, stderr = job.wait()
    assert time.monotonic() - killed < 150  # of 300 seconds that a collective may take
    assert status > 0
    errors = [line for line in stderr.splitlines() if line.startswith("diffpipe train: error: ")]
    assert len([line for line in errors if f"rank {len(job.ranks) - 1}: a loader process has died" in line]) == 1, (
        stderr
    )
    assert len(errors) <= len(job.ranks)
    assert "Traceback" not in stderr, stderr
    end = max(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*")) + 2
    train_to_end(tmp_path, f"train.steps={end}", "checkpoint.every=2", processes=processes)
    if end <= 24:
        assert_equals_uninterrupted(tmp_path, uninterrupted(processes), end)
