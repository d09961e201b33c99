"""Killed while it saves: a checkpoint is committed whole or does not exist, and the run goes on as if nothing was."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_jobs import Job, debris, steps, trains, unharmed, whole

OFTEN = "checkpoint.every=1"
DYING = "tests.faults.fault_at_save"


def entries(run: Path) -> set[tuple[str, int]]:
    """What lies among the checkpoints, by name and inode."""
    folder = run / "checkpoints"
    return {(entry.name, entry.inode()) for entry in os.scandir(folder)} if folder.is_dir() else set()


@pytest.mark.slow
def test_all_ranks_killed_at_random_moments_in_a_save_twenty_times(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    run, newest, left = tmp_path / "run", 0, 0
    for _ in range(20):
        before = entries(run)
        job = Job(run, "train.steps=1000", OFTEN, f"checkpoint.async={rng.choice(('true', 'false'))}", processes=2)
        job.until(lambda: any(name.startswith(".") for name, _ in entries(run) - before))  # noqa: B023
        time.sleep(rng.uniform(0, 0.08))
        job.kill_all()
        status, said = job.wait()
        assert status == -signal.SIGKILL, said
        assert f"resuming from {run}/checkpoints/step-{newest:08d}" in said or not newest
        assert "warning" not in said
        left += any(name.startswith(".") for name, _ in entries(run))
        standing = steps(run)
        newest = max(standing, default=0)
        assert len(standing) <= 3  # two are kept, and a third while the oldest goes
    assert left, "no kill has hit a save"
    end = newest + 2
    trains(run, f"train.steps={end}", OFTEN, processes=2)
    trains(tmp_path / "straight", f"train.steps={end}", processes=2)
    unharmed(run, tmp_path / "straight", end)
    assert steps(run) == [end - 1, end]


def dying(run: Path, n: int, *words: str, rank: int = 0, processes: int = 0, **fate: object) -> tuple[bool, str]:
    """Train one step beyond the newest checkpoint, to die at the n-th thing done in its save: whether it did."""
    last = max(int(path.name[-8:]) for path in run.glob("checkpoints/step-*") if whole(path))
    began = time.monotonic()
    words = (f"train.steps={last + 1}", OFTEN, *words)
    told = json.dumps({"rank": rank, "n": n, **fate})
    status, said = Job(run, *words, processes=processes, module=DYING, fate=told).wait()
    assert time.monotonic() - began < 30, "the others did not notice"
    return status != 0, said


def test_killed_between_each_two_steps_of_the_commit_and_of_the_pruning(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    trains(tmp_path, "train.steps=3", OFTEN)
    committed, n, died = [], 0, True
    while died:
        n += 1
        assert n < 40
        before = steps(tmp_path)
        died, said = dying(tmp_path, n)
        assert f"resuming from {tmp_path}/checkpoints/step-{before[-1]:08d}" in said
        assert "warning" not in said
        now = steps(tmp_path)
        assert now[: len(before)] == before or now[-1] > before[-1], "one has gone before there was a newer one"
        assert len(now) >= 2
        committed.append(now[-1] > before[-1])
    # First the kills that come before the commit, which has its place in a save, then those after it.
    assert committed == sorted(committed)
    assert committed.count(False) >= 6
    assert committed.count(True) >= 6
    unharmed(tmp_path, straight(0), now[-1])
    assert steps(tmp_path) == now[-2:]
    assert debris(tmp_path) == []


def test_killed_while_it_tidies_up_after_another_kill(tmp_path: Path, straight: Callable[[int], Path]) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints"
    trains(run, "train.steps=4", "checkpoint.every=1", "checkpoint.keep_last=4")
    shutil.copytree(folder / "step-00000004", folder / ".tmp-step-00000005")
    for step in (3, 4):
        (folder / f"step-{step:08d}" / "state.json").write_text("{}")
    deaths = 0
    while (folder / ".tmp-step-00000005").exists() or not all(map(whole, folder.glob("step-*"))):
        died, said = dying(run, 2, trained=0)  # one thing is done, and before the next it dies
        assert died, said
        deaths += 1
        assert deaths < 20
        assert whole(folder / "step-00000001")
        assert whole(folder / "step-00000002")
    assert deaths >= 6
    assert "resuming from" in trains(run, "train.steps=4", "checkpoint.keep_last=9")
    assert steps(run) == [1, 2, 4]
    assert debris(run) == ["damaged-step-00000003", "damaged-step-00000004"]
    unharmed(run, straight(0), 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_killed_in_a_save_ends_the_others_and_commits_nothing(
    tmp_path: Path, rank: int, straight: Callable[[int], Path]
) -> None:
    trains(tmp_path, "train.steps=2", OFTEN, processes=2)
    for n in (3, 6) if rank == 0 else (1,):
        died, said = dying(tmp_path, n, rank=rank, processes=2)
        assert died, said
        assert steps(tmp_path) == [1, 2]
    trains(tmp_path, "train.steps=4", processes=2)
    unharmed(tmp_path, straight(2), 4)
    assert debris(tmp_path) == []


@pytest.mark.parametrize("processes", [0, 2])
def test_all_killed_with_a_save_in_flight_that_training_has_left_behind(
    tmp_path: Path, processes: int, straight: Callable[[int], Path]
) -> None:
    """The save of step 4 stalls while steps 5 to 7 are trained."""
    trains(tmp_path, "train.steps=2", processes=processes)
    fate = json.dumps({"n": 3, "trained": 2, "deed": "stall"})
    words = ["train.steps=100", "checkpoint.every=4", "checkpoint.async=true"]
    job = Job(tmp_path, *words, processes=processes, module=DYING, fate=fate)
    job.until_step(7)
    assert steps(tmp_path) == [2]
    assert debris(tmp_path) == [".tmp-step-00000004"]
    job.kill_all()
    job.wait()
    assert steps(tmp_path) == [2]
    said = trains(tmp_path, "train.steps=8", processes=processes)
    assert f"resuming from {tmp_path}/checkpoints/step-00000002" in said
    unharmed(tmp_path, straight(processes), 8)
    assert debris(tmp_path) == []
