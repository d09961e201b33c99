"""Damaged checkpoints, and other entries in the checkpoint directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_jobs import (
    assert_equals_uninterrupted,
    checkpoint_steps,
    leftovers,
    train_fails,
    train_to_end,
)

KEEP_ALL = ["checkpoint.every=1", "checkpoint.keep_last=24"]


def shard(checkpoint: Path) -> Path:
    return sorted(checkpoint.glob("*.safetensors"))[-1]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_state(checkpoint: Path) -> None:
    """As many bytes, still JSON, another step."""
    path = checkpoint / "state.json"
    text = path.read_text()
    step = json.loads(text)["step"]
    path.write_text(text.replace(f'"step": {step}', f'"step": {(step + 1) % 10}', 1))


# How a checkpoint is damaged, and what the message must name.
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda c: truncate(shard(c)), "safetensors"),
    (lambda c: flip(shard(c)), "safetensors"),
    (lambda c: shard(c).unlink(), "safetensors"),
    (lambda c: (c / "manifest.json").unlink(), "manifest.json"),
    (lambda c: truncate(c / "manifest.json"), "manifest.json"),
    (lambda c: (c / "manifest.json").write_bytes(b"\x80\x04\xff\x00" * 20), "manifest.json"),
    (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json"),
    (lambda c: (c / "manifest.json").write_text('{"step": 1, "files": {}}'), ""),
    (lambda c: (c / "state.json").write_bytes(b"\xff garbage"), "state.json"),
    (change_state, "state.json"),
    (lambda c: (c / "state.json").unlink(), "state.json"),
    (lambda c: (c / "more.json").write_text("{}"), "more.json"),
    (lambda c: (shutil.rmtree(c), c.mkdir()), "manifest.json"),
]


def damage_all(run: Path, newest: int) -> dict[str, str]:
    """Damage each checkpoint in another way, from the newest on: what the message must name, by checkpoint."""
    expected = {}
    for step, (damage, about) in zip(range(newest, 0, -1), DAMAGE, strict=False):
        path = run / "checkpoints" / f"step-{step:08d}"
        damage(path)
        expected[path.name] = about
    return expected


@pytest.mark.parametrize("processes", [0, 2])
def test_damaged_checkpoints_are_skipped_with_a_warning_for_the_newest_valid_one(
    tmp_path: Path, processes: int, uninterrupted: Callable[[int], Path]
) -> None:
    run, newest = tmp_path / "run", 2 + len(DAMAGE)
    train_to_end(run, f"train.steps={newest}", *KEEP_ALL, processes=processes)
    expected = damage_all(run, newest)
    stderr = train_to_end(run, f"train.steps={newest + 1}", processes=processes)
    assert f"resuming from {run}/checkpoints/step-00000002" in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert len(lines) == len(expected)
    for name, about in expected.items():
        (line,) = [line for line in lines if name in line]
        assert about in line.partition(name)[2], line
    assert_equals_uninterrupted(run, uninterrupted(processes), newest + 1)
    assert checkpoint_steps(run) == [2, newest + 1]
    assert leftovers(run) == sorted(f"damaged-{name}" for name in expected)


@pytest.mark.parametrize("processes", [0, 2])
def test_where_all_are_damaged_the_error_names_each_and_nothing_starts_from_scratch(
    tmp_path: Path, processes: int
) -> None:
    run, newest = tmp_path / "run", 2
    train_to_end(run, f"train.steps={newest}", *KEEP_ALL, processes=processes)
    damage_all(run, newest)
    metrics_log = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):  # the second start must not find an empty directory after the first one's clean-up
        error = train_fails(run, "train.steps=4", *KEEP_ALL, processes=processes)
        assert "step-00000001" in error
        assert "step-00000002" in error
        assert "start from scratch" in error
        assert (run / "metrics.jsonl").read_bytes() == metrics_log


def test_the_newest_has_the_highest_step_whatever_its_times(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    run = tmp_path / "run"
    train_to_end(run, "train.steps=10", "checkpoint.every=9")
    folder = run / "checkpoints"
    for path in run.rglob("*"):  # the newest are the oldest by their times, and all are of the future
        step = 9 if "step-00000009" in path.parts else 10
        os.utime(path, times=(4e9 - step, 4e9 - step))
    shutil.copytree(folder / "step-00000009", folder / "step-9")
    foreign = ["step-00000099.bak", "step-", "step-1e9", "step-+11", "step--12", "notes", "STEP-00000098"]
    for name in foreign:
        (folder / name).mkdir()
    (folder / "step-00000098.tar").write_text("a copy of somebody")
    (folder / "latest").write_text("step-00000009")  # the pointer is for people; this one is out of date
    stderr = train_to_end(run, "train.steps=11")
    assert f"resuming from {folder}/step-00000010" in stderr
    assert "warning" not in stderr
    foreign_names = {*foreign, "step-00000098.tar"}
    assert foreign_names <= {path.name for path in folder.iterdir()}
    for name in foreign_names:
        shutil.rmtree(folder / name, ignore_errors=True)
    assert_equals_uninterrupted(run, uninterrupted(0), 11)
