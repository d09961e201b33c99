"""Disks that are full or cannot be written to."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.training_jobs import Job, debris, fails, steps, trains, unharmed

OFTEN = "checkpoint.every=1"


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path):
        self.path = path
        self.run = path / "run"
        self._ballast = path / "ballast"

    def fill(self, free: int) -> None:
        """Leave so many bytes."""
        there = os.statvfs(self.path)
        self._ballast.write_bytes(b"\0" * (there.f_bavail * there.f_frsize - free))

    def make_room(self) -> None:
        self._ballast.unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize(("processes", "beside"), [(0, "false"), (2, "false"), (2, "true")])
def test_a_full_disk_costs_the_new_checkpoint_and_not_the_old_one(
    disk: Disk, processes: int, beside: str, straight: Callable[[int], Path]
) -> None:
    trains(disk.run, "train.steps=2", OFTEN, processes=processes)
    # Less than a checkpoint, and less than either rank's half of one; more than the logs take.
    disk.fill(300_000)
    error = fails(disk.run, "train.steps=4", OFTEN, f"checkpoint.async={beside}", processes=processes)
    assert "No space left on device" in error
    assert "free some space" in error
    assert steps(disk.run) == [1, 2]
    assert debris(disk.run) == []
    disk.make_room()
    assert "resuming from" in trains(disk.run, "train.steps=4", OFTEN, processes=processes)
    unharmed(disk.run, straight(processes), 4)


def test_a_disk_that_is_full_on_one_rank_alone_is_an_error_of_all(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    trains(tmp_path, "train.steps=2", OFTEN, processes=2)
    fate = json.dumps({"rank": 1, "n": 100_000, "deed": "full"})
    error = fails(tmp_path, "train.steps=4", OFTEN, processes=2, module="tests.faults.fault_at_save", fate=fate)
    assert "File too large" in error
    assert "rank 1" in error
    assert "free some space" in error
    assert steps(tmp_path) == [1, 2]
    assert debris(tmp_path) == []
    trains(tmp_path, "train.steps=4", OFTEN, processes=2)
    unharmed(tmp_path, straight(2), 4)


def test_a_run_that_cannot_be_written_to_fails_before_it_trains(disk: Disk, straight: Callable[[int], Path]) -> None:
    trains(disk.run, "train.steps=2", OFTEN)
    before = {path: path.stat().st_mtime_ns for path in disk.run.rglob("*")}
    disk.remount("ro")
    for processes in (0, 2):
        assert "Read-only file system" in fails(disk.run, "train.steps=4", OFTEN, processes=processes)
        assert "run.dir" in fails(disk.path / "another" / "run", "train.steps=4", processes=processes)
    disk.remount("rw")
    assert {path: path.stat().st_mtime_ns for path in disk.run.rglob("*")} == before
    trains(disk.run, "train.steps=4", OFTEN)
    unharmed(disk.run, straight(0), 4)


def test_checkpoints_that_cannot_be_written_are_found_out_before_a_step_is_trained(disk: Disk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk.path)
    disk.remount("ro")
    status, said = Job(run, "train.steps=4").wait()
    assert status == 2, said
    assert "Read-only file system" in said
    assert not (run / "metrics.jsonl").exists()
