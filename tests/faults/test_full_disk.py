"""A full disk under every command that writes: status 2, one line, and no partial file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_words import SMALL, TEST, WRITERS, is_whole
from tests.support.commands import CONFIG, HOME, TINY, diffpipe, server
from tests.support.small_disk import Disk, mounted_disk
from tests.support.training_jobs import checkpoint_steps, leftovers


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_no_partial_file(disk: Disk, inputs: dict[str, Path], writer: str) -> None:
    words, name = WRITERS[writer]
    out = disk.path / name
    if writer == "index":
        out.mkdir()
        tar = next(TEST.glob("*.tar"))
        (out / tar.name).write_bytes(tar.read_bytes())
    before = disk.files()
    filled = [str(word).format(out=out, **inputs) for word in words]
    for free in (0, 4096, 3 * 4096):
        disk.fill(free)
        done = diffpipe(*filled)
        assert done.returncode == 2 or (free and done.returncode == 0), done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            return
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"diffpipe {filled[0]}: error: ")]
        assert len(lines) == 1, done.stderr
        assert "No space left on device" in lines[0]
        whole = [path for path in disk.files() if path not in before]
        assert all(is_whole(disk.path / path) for path in whole), whole


@pytest.mark.parametrize("processes", [0, 2])
def test_logs_without_a_disk_never_stop_a_run(disk: Disk, tmp_path: Path, processes: int) -> None:
    """metrics.jsonl, TensorBoard, the samples seen, grids and scores are on the full disk, the checkpoints are not."""
    disk.run.mkdir()
    (tmp_path / "checkpoints").mkdir()
    (disk.run / "checkpoints").symlink_to(tmp_path / "checkpoints")
    words = ["train", CONFIG, f"run.dir={disk.run}", *TINY, *SMALL, "train.record_samples=true"]
    often = ["sample.every=30", "sample.n=2", "eval.every=60", "eval.n=10", "checkpoint.every=30"]
    faulty = {"module": "tests.faults.full_from_step", "env": {"FILL": str(disk.path / "ballast")}}
    done = diffpipe(*words, *often, "train.steps=60", processes=processes, **faulty)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
    for name in ("metrics.jsonl", "rank-00000.jsonl", "tensorboard", "step-00000030.png", "train-step-00000060-n10-"):
        assert any(line.startswith("warning: ") and name in line for line in done.stderr.splitlines()), done.stderr
    assert checkpoint_steps(disk.run) == [30, 60]
    assert leftovers(disk.run) == []
    assert not [path for path in disk.files() if path.endswith(".tmp")]
    disk.make_room()
    done = diffpipe(*words, "train.steps=61", processes=processes)
    assert done.returncode == 0, done.stderr


def test_a_message_to_a_full_disk_is_no_error(tmp_path: Path) -> None:
    """stderr is a file on a full disk, as the log of a job may be."""
    with Path("/dev/full").open("w") as full:
        words = ["train", str(CONFIG), f"run.dir={tmp_path / 'run'}", *TINY, *SMALL]
        command = server().start(words, HOME, os.environ | {"OMP_NUM_THREADS": "1"}, full, full)
        assert command.wait(300) == 0
    assert checkpoint_steps(tmp_path / "run") == [2]
