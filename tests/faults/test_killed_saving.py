"""Killed while saving: a checkpoint is complete or does not exist, and the run resumes exactly."""

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

from tests.support.training_jobs import (
    TrainingJob,
    assert_equals_uninterrupted,
    checkpoint_steps,
    is_intact,
    leftovers,
    train_to_end,
)

OFTEN = "checkpoint.every=1"
MODULE = "tests.faults.fault_at_save"


def entries(run: Path) -> set[tuple[str, int]]:
    """The entries of the checkpoint directory, by name and inode."""
    folder = run / "checkpoints"
    return {(entry.name, entry.inode()) for entry in os.scandir(folder)} if folder.is_dir() else set()


def test_all_ranks_killed_at_random_moments_in_a_save_twenty_times(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    run, newest, partial_saves, kept_before = tmp_path / "run", 0, 0, 0
    for _ in range(20):
        before = entries(run)
        job = TrainingJob(
            run, "train.steps=1000", OFTEN, f"checkpoint.async={rng.choice(('true', 'false'))}", processes=2
        )
        job.wait_until(lambda: any(name.startswith(".") for name, _ in entries(run) - before))  # noqa: B023
        time.sleep(rng.uniform(0, 0.08))
        job.kill_all()
        status, stderr = job.wait()
        assert status == -signal.SIGKILL, stderr
        assert f"resuming from {run}/checkpoints/step-{newest:08d}" in stderr or not newest
        assert "warning" not in stderr
        partial_saves += any(name.startswith(".") for name, _ in entries(run))
        kept = checkpoint_steps(run)
        newest = max(kept, default=0)
        assert len(kept) <= max(2, kept_before) + 1  # a kill between commit and pruning leaves one more
        kept_before = len(kept)
    assert partial_saves, "no kill came during a save"
    end = newest + 2
    train_to_end(run, f"train.steps={end}", OFTEN, processes=2)
    train_to_end(tmp_path / "uninterrupted", f"train.steps={end}", processes=2)
    assert_equals_uninterrupted(run, tmp_path / "uninterrupted", end)
    assert checkpoint_steps(run) == [end - 1, end]


def train_killed_at_change(
    run: Path, n: int, *words: str, rank: int = 0, processes: int = 0, **fault: object
) -> tuple[bool, str]:
    """Train one step beyond the newest checkpoint, killed at the n-th change of its save: whether it was; stderr."""
    last = max(int(path.name[-8:]) for path in run.glob("checkpoints/step-*") if is_intact(path))
    began = time.monotonic()
    words = (f"train.steps={last + 1}", OFTEN, *words)
    fault_at_save = json.dumps({"rank": rank, "n": n, **fault})
    status, stderr = TrainingJob(run, *words, processes=processes, module=MODULE, fault_at_save=fault_at_save).wait()
    assert time.monotonic() - began < 150, "the others did not notice"
    return status != 0, stderr


def test_killed_before_each_change_of_the_commit_and_of_the_pruning(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    train_to_end(tmp_path, "train.steps=3", OFTEN)
    committed, n, killed = [], 0, True
    while killed:
        n += 1
        assert n < 40
        before = checkpoint_steps(tmp_path)
        killed, stderr = train_killed_at_change(tmp_path, n)
        assert f"resuming from {tmp_path}/checkpoints/step-{before[-1]:08d}" in stderr
        assert "warning" not in stderr
        now = checkpoint_steps(tmp_path)
        assert now[: len(before)] == before or now[-1] > before[-1], (
            "a checkpoint was removed before a newer one was committed"
        )
        assert len(now) >= 2
        committed.append(now[-1] > before[-1])
    # First the kills before the commit, then those after it.
    assert committed == sorted(committed)
    assert committed.count(False) >= 6
    assert committed.count(True) >= 6
    assert_equals_uninterrupted(tmp_path, uninterrupted(0), now[-1])
    assert checkpoint_steps(tmp_path) == now[-2:]
    assert leftovers(tmp_path) == []


def test_killed_while_it_removes_what_another_kill_has_left(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    run = tmp_path / "run"
    folder = run / "checkpoints"
    train_to_end(run, "train.steps=4", "checkpoint.every=1", "checkpoint.keep_last=4")
    shutil.copytree(folder / "step-00000004", folder / ".tmp-step-00000005")
    for step in (3, 4):
        (folder / f"step-{step:08d}" / "state.json").write_text("{}")
    kills = 0
    while (folder / ".tmp-step-00000005").exists() or not all(map(is_intact, folder.glob("step-*"))):
        killed, stderr = train_killed_at_change(run, 2, after_steps=0)  # one change is made
        assert killed, stderr
        kills += 1
        assert kills < 20
        assert is_intact(folder / "step-00000001")
        assert is_intact(folder / "step-00000002")
    assert kills >= 6
    assert "resuming from" in train_to_end(run, "train.steps=4", "checkpoint.keep_last=9")
    assert checkpoint_steps(run) == [1, 2, 4]
    assert leftovers(run) == ["damaged-step-00000003", "damaged-step-00000004"]
    assert_equals_uninterrupted(run, uninterrupted(0), 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_killed_in_a_save_ends_the_others_and_commits_nothing(
    tmp_path: Path, rank: int, uninterrupted: Callable[[int], Path]
) -> None:
    train_to_end(tmp_path, "train.steps=2", OFTEN, processes=2)
    for n in (3, 6) if rank == 0 else (1,):
        killed, stderr = train_killed_at_change(tmp_path, n, rank=rank, processes=2)
        assert killed, stderr
        assert checkpoint_steps(tmp_path) == [1, 2]
    train_to_end(tmp_path, "train.steps=4", processes=2)
    assert_equals_uninterrupted(tmp_path, uninterrupted(2), 4)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("processes", [0, 2])
def test_all_killed_while_a_save_is_in_flight_and_training_is_ahead(
    tmp_path: Path, processes: int, uninterrupted: Callable[[int], Path]
) -> None:
    """The save of step 4 stalls while steps 5 to 7 are trained."""
    train_to_end(tmp_path, "train.steps=2", processes=processes)
    fault_at_save = json.dumps({"n": 3, "after_steps": 2, "action": "stall"})
    words = ["train.steps=100", "checkpoint.every=4", "checkpoint.async=true"]
    job = TrainingJob(tmp_path, *words, processes=processes, module=MODULE, fault_at_save=fault_at_save)
    job.wait_until_step(7)
    assert checkpoint_steps(tmp_path) == [2]
    assert leftovers(tmp_path) == [".tmp-step-00000004"]
    job.kill_all()
    job.wait()
    assert checkpoint_steps(tmp_path) == [2]
    stderr = train_to_end(tmp_path, "train.steps=8", processes=processes)
    assert f"resuming from {tmp_path}/checkpoints/step-00000002" in stderr
    assert_equals_uninterrupted(tmp_path, uninterrupted(processes), 8)
    assert leftovers(tmp_path) == []
