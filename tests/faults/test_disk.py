"""Disks that are full or read-only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
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


def test_a_disk_that_is_slower_than_the_timeout_of_a_step_does_not_end_the_training(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    fault_at_save = json.dumps({"n": 3, "after_steps": 2, "action": "stall"})
    words = ("train.steps=4", OFTEN, "train.timeout=4")
    job = TrainingJob(tmp_path, *words, processes=2, module="tests.faults.fault_at_save", fault_at_save=fault_at_save)
    job.wait_until(lambda: list(tmp_path.glob("checkpoints/.tmp-step-00000002/*")))
    time.sleep(6)
    (tmp_path / "go").touch()
    status, stderr = job.wait()
    assert status == 0, stderr
    assert checkpoint_steps(tmp_path) == [3, 4]
    assert_equals_uninterrupted(tmp_path, uninterrupted(2), 4)


def test_a_process_that_is_lost_during_a_save_is_noticed_in_the_time_of_a_step(tmp_path: Path) -> None:
    fault_at_save = json.dumps({"n": 3, "after_steps": 2, "action": "stall"})
    job = TrainingJob(
        tmp_path,
        "train.steps=4",
        OFTEN,
        "train.timeout=4",
        processes=2,
        module="tests.faults.fault_at_save",
        fault_at_save=fault_at_save,
    )
    job.wait_until(lambda: list(tmp_path.glob("checkpoints/.tmp-step-00000002/*")))
    job.ranks[1].suspend()
    job.wait_until(lambda: not job.ranks[0].is_running() or job.ranks[0].status() == psutil.STATUS_ZOMBIE)
    job.kill_all()
    _, stderr = job.wait()
    assert "has lost another process of the job" in stderr
    assert checkpoint_steps(tmp_path) == [1]
