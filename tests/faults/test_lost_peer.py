"""A process of the job dies or hangs: the others exit promptly, save nothing, and print why in one line."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fault_injection import exit_statuses, faulty_job
from tests.support.training_jobs import (
    TrainingJob,
    assert_equals_uninterrupted,
    checkpoint_steps,
    leftovers,
    train_to_end,
)

LONG = ("train.steps=1000", "checkpoint.every=0")
BEGUN = ("train.steps=2", "checkpoint.every=0")


def assert_lost_peer(job: TrainingJob, run: Path, rank: int) -> None:
    """The job ends: `rank` has printed in one line that another process is lost, and has saved nothing."""
    status, stderr = job.wait()
    assert status != 0
    assert exit_statuses(run)[rank] == 1, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("diffpipe train: error: ")]
    assert len(lines) == 1, stderr
    assert f"rank {rank} has lost another process of the job" in lines[0]
    assert "nothing was saved" in lines[0]
    assert "Traceback" not in stderr, stderr
    assert checkpoint_steps(run) == [2]
    assert not (run / ".interrupted").exists()


def assert_resumes(run: Path, uninterrupted: Path) -> None:
    train_to_end(run, "train.steps=8", "checkpoint.every=0", processes=2)
    assert_equals_uninterrupted(run, uninterrupted, 8)
    assert leftovers(run) == []


@pytest.mark.parametrize(
    ("events", "fault_at_save"),
    [
        ([["step", 5, 1, "SIGKILL"]], None),  # the launcher then sends SIGTERM
        ([["step", 5, 0, "SIGTERM"], ["step", 5, 1, "SIGKILL"]], None),
        ([["step", 5, 1, "SIGUSR1"]], {"rank": 1, "n": 1}),  # it is killed in the last save
    ],
)
def test_a_signal_saves_nothing_where_another_process_is_dead(
    tmp_path: Path,
    events: list[list[object]],
    fault_at_save: dict[str, int] | None,
    uninterrupted: Callable[[int], Path],
) -> None:
    train_to_end(tmp_path, *BEGUN, processes=2)
    began = time.monotonic()
    assert_lost_peer(
        faulty_job(tmp_path, *LONG, processes=2, fault_at_save=fault_at_save, events=events), tmp_path, rank=0
    )
    assert time.monotonic() - began < 150  # of 300 seconds that a collective may take
    assert_resumes(tmp_path, uninterrupted(2))


def test_a_signal_in_a_hook_saves_nothing_where_another_process_is_dead(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    """Rank 0 is in a hook without collectives while rank 1 dies, and gets the signal first."""
    train_to_end(tmp_path, *BEGUN, processes=2)
    sampling = ("sample.every=4", "sample.n=2")
    job = faulty_job(tmp_path, *LONG, *sampling, processes=2, events=[["sample", 4, 0, "hold"]])
    job.wait_until_step(4)
    job.ranks[1].kill()
    job.ranks[0].send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert job.ranks[0].is_running()
    (tmp_path / "go").touch()
    freed = time.monotonic()
    assert_lost_peer(job, tmp_path, rank=0)
    assert time.monotonic() - freed < 150
    assert_resumes(tmp_path, uninterrupted(2))


@pytest.mark.parametrize(("stopped", "then"), [(1, signal.SIGKILL), (0, signal.SIGCONT)])
def test_a_process_that_hangs_is_lost_after_the_timeout(
    tmp_path: Path, stopped: int, then: signal.Signals, uninterrupted: Callable[[int], Path]
) -> None:
    """If it wakes up later, it has lost the others, and saves nothing either."""
    train_to_end(tmp_path, *BEGUN, processes=2)
    events = [["step", 5, stopped, "SIGSTOP"]]
    job = faulty_job(tmp_path, *LONG, "train.timeout=8", processes=2, events=events)
    other = 1 - stopped
    job.wait_until(lambda: job.ranks[stopped].status() == "stopped")
    since = time.monotonic()
    job.wait_until(lambda: exit_statuses(tmp_path))
    assert time.monotonic() - since < 150
    assert exit_statuses(tmp_path) == {other: 1}
    job.ranks[stopped].send_signal(then)
    if then == signal.SIGKILL:
        assert_lost_peer(job, tmp_path, other)
    else:
        status, stderr = job.wait()
        assert status == 1, stderr
        assert exit_statuses(tmp_path) == {0: 1, 1: 1}
        assert stderr.count(" has lost another process of the job") == 2, stderr
        assert checkpoint_steps(tmp_path) == [2]
        assert not (tmp_path / ".interrupted").exists()
    assert_resumes(tmp_path, uninterrupted(2))
