"""A process of the job dies, or hangs: the others leave promptly, save nothing, and say why in a line."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.fault_injection import left, poisoned
from tests.support.training_jobs import Job, debris, steps, trains, unharmed

LONG = ("train.steps=1000", "checkpoint.every=0")
BEGUN = ("train.steps=2", "checkpoint.every=0")


def lost(job: Job, run: Path, rank: int) -> None:
    """The job ends: `rank` has told in one line that another is gone, and has saved nothing."""
    status, said = job.wait()
    assert status != 0
    assert left(run)[rank] == 1, said
    lines = [line for line in said.splitlines() if line.startswith("diffpipe train: error: ")]
    assert len(lines) == 1, said
    assert f"rank {rank} has lost another process of the job" in lines[0]
    assert "nothing was saved" in lines[0]
    assert "Traceback" not in said, said
    assert steps(run) == [2]
    assert not (run / ".interrupted").exists()


def goes_on(run: Path, straight: Path) -> None:
    trains(run, "train.steps=8", "checkpoint.every=0", processes=2)
    unharmed(run, straight, 8)
    assert debris(run) == []


@pytest.mark.parametrize(
    ("deeds", "fate"),
    [
        ([["step", 5, 1, "SIGKILL"]], None),  # the launcher then sends SIGTERM
        ([["step", 5, 0, "SIGTERM"], ["step", 5, 1, "SIGKILL"]], None),
        ([["step", 5, 1, "SIGUSR1"]], {"rank": 1, "n": 1}),  # it dies in the last save
    ],
)
def test_a_signal_beside_a_death_saves_nothing(
    tmp_path: Path, deeds: list[list[object]], fate: dict[str, int] | None, straight: Callable[[int], Path]
) -> None:
    trains(tmp_path, *BEGUN, processes=2)
    began = time.monotonic()
    lost(poisoned(tmp_path, *LONG, processes=2, fate=fate, deeds=deeds), tmp_path, rank=0)
    assert time.monotonic() - began < 60  # of 300 seconds that a collective may take
    goes_on(tmp_path, straight(2))


def test_a_signal_that_comes_in_a_hook_after_a_death_saves_nothing(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    """Rank 0 is busy by itself while rank 1 dies, and hears the signal first."""
    trains(tmp_path, *BEGUN, processes=2)
    rng = ("sample.every=4", "sample.n=2")
    job = poisoned(tmp_path, *LONG, *rng, processes=2, deeds=[["draw", 4, 0, "hold"]])
    job.until_step(4)
    job.ranks[1].kill()
    job.ranks[0].send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert job.ranks[0].is_running()
    (tmp_path / "go").touch()
    freed = time.monotonic()
    lost(job, tmp_path, rank=0)
    assert time.monotonic() - freed < 30
    goes_on(tmp_path, straight(2))


@pytest.mark.parametrize(("stopped", "then"), [(1, signal.SIGKILL), (0, signal.SIGCONT)])
def test_a_process_that_hangs_is_given_up_after_the_timeout(
    tmp_path: Path, stopped: int, then: signal.Signals, straight: Callable[[int], Path]
) -> None:
    """And should it wake up again, it is alone, and saves nothing either."""
    trains(tmp_path, *BEGUN, processes=2)
    deeds = [["step", 5, stopped, "SIGSTOP"]]
    job = poisoned(tmp_path, *LONG, "train.timeout=8", processes=2, deeds=deeds)
    other = 1 - stopped
    job.until(lambda: job.ranks[stopped].status() == "stopped")
    since = time.monotonic()
    job.until(lambda: left(tmp_path))
    assert time.monotonic() - since < 30
    assert left(tmp_path) == {other: 1}
    job.ranks[stopped].send_signal(then)
    if then == signal.SIGKILL:
        lost(job, tmp_path, other)
    else:
        status, said = job.wait()
        assert status == 1, said
        assert left(tmp_path) == {0: 1, 1: 1}
        assert said.count(" has lost another process of the job") == 2, said
        assert steps(tmp_path) == [2]
        assert not (tmp_path / ".interrupted").exists()
    goes_on(tmp_path, straight(2))
