"""Disks that are full or read-only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.small_disk import Disk, mounted_disk
from tests.support.training_jobs import (
    TrainingJob,
    assert_equals_uninterrupted,
    checkpoint_steps,
    leftovers,
    train_fails,
    train_to_end,
)

OFTEN = "checkpoint.every=1"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize(("processes", "beside"), [(0, "false"), (2, "false"), (2, "true")])
def test_a_full_disk_loses_the_new_checkpoint_and_not_the_old_one(
    disk: Disk, processes: int, beside: str, uninterrupted: Callable[[int], Path]
) -> None:
    train_to_end(disk.run, "train.steps=2", OFTEN, processes=processes)
    # Less than a checkpoint, and less than either rank's half of one, but enough for the logs.
    disk.fill(300_000)
    error = train_fails(disk.run, "train.steps=4", OFTEN, f"checkpoint.async={beside}", processes=processes)
    assert "No space left on device" in error
    assert "free some space" in error
    assert checkpoint_steps(disk.run) == [1, 2]
    assert leftovers(disk.run) == []
    disk.make_room()
    assert "resuming from" in train_to_end(disk.run, "train.steps=4", OFTEN, processes=processes)
    assert_equals_uninterrupted(disk.run, uninterrupted(processes), 4)


def test_a_disk_that_is_full_on_one_rank_is_an_error_on_all(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    train_to_end(tmp_path, "train.steps=2", OFTEN, processes=2)
    fault_at_save = json.dumps({"rank": 1, "n": 100_000, "action": "disk_full"})
    error = train_fails(
        tmp_path, "train.steps=4", OFTEN, processes=2, module="tests.faults.fault_at_save", fault_at_save=fault_at_save
    )
    assert "File too large" in error
    assert "rank 1" in error
    assert "free some space" in error
    assert checkpoint_steps(tmp_path) == [1, 2]
    assert leftovers(tmp_path) == []
    train_to_end(tmp_path, "train.steps=4", OFTEN, processes=2)
    assert_equals_uninterrupted(tmp_path, uninterrupted(2), 4)


def test_a_read_only_run_directory_is_refused_before_training(disk: Disk, uninterrupted: Callable[[int], Path]) -> None:
    train_to_end(disk.run, "train.steps=2", OFTEN)
    before = {path: path.stat().st_mtime_ns for path in disk.run.rglob("*")}
    disk.remount("ro")
    for processes in (0, 2):
        assert "Read-only file system" in train_fails(disk.run, "train.steps=4", OFTEN, processes=processes)
        assert "run.dir" in train_fails(disk.path / "another" / "run", "train.steps=4", processes=processes)
    disk.remount("rw")
    assert {path: path.stat().st_mtime_ns for path in disk.run.rglob("*")} == before
    train_to_end(disk.run, "train.steps=4", OFTEN)
    assert_equals_uninterrupted(disk.run, uninterrupted(0), 4)


def test_a_read_only_checkpoint_directory_is_refused_before_training(disk: Disk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk.path)
    disk.remount("ro")
    status, stderr = TrainingJob(run, "train.steps=4").wait()
    assert status == 2, stderr
    assert "Read-only file system" in stderr
    assert not (run / "metrics.jsonl").exists()
