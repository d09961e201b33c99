"""Snapshots of averages: when they are due, what they hold, and what a starting job does with those that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.experiment import snapshots
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint import committed, open_checkpoint
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state
from tests.support.stage_cases import CASES

POWER = ["ema={kind: power, snapshot_every: 2}"]
TENSORS = {"net.a": torch.ones(3), "ema.a": torch.full((3,), 2.0), "ema_1.a": torch.full((3,), 3.0)}


def save(home: Path, steps: range, *words: str) -> None:
    """Save a checkpoint after each of the steps, and the snapshots that are due."""
    experiment = CASES["ddpm"].experiment(f"run.dir={home}", *POWER, *words)
    config = CheckpointConfig.model_validate({"async": False})
    with AsyncCheckpointer(home / "checkpoints", config, Communicator()) as checkpointer:
        for step in steps:
            due = snapshots.due(experiment, step)
            checkpointer.save(TENSORS, run_state(step), [*due, checkpointer.checkpoints])


def names(folder: Path) -> list[str]:
    return [path.name for path in reversed(committed(folder))]


def test_snapshots_are_of_power_averages_alone() -> None:
    assert snapshots.every(CASES["ddpm"].experiment()) == 0
    assert snapshots.due(CASES["ddpm"].experiment(), 1000) == []
    power = CASES["ddpm"].experiment(*POWER)
    assert snapshots.every(power) == 2
    assert [len(snapshots.due(power, step)) for step in (1, 2, 3, 4)] == [0, 1, 0, 1]


def test_a_snapshot_holds_the_averages_and_is_kept_when_its_checkpoint_is_pruned(tmp_path: Path) -> None:
    save(tmp_path, range(1, 9))
    assert names(tmp_path / "checkpoints") == ["step-00000007", "step-00000008"]
    assert names(tmp_path / "ema") == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    snapshot = open_checkpoint(tmp_path / "ema" / "step-00000004", Communicator())
    tensors = {name: torch.zeros(3) for name in ("ema.a", "ema_1.a")}
    checkpoints.load(snapshot, tensors, Communicator())
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in tensors)
    with pytest.raises(UserError, match=r"net\.a is missing"):
        checkpoints.load(snapshot, {"net.a": torch.zeros(3)}, Communicator())


def test_old_snapshots_are_removed_where_the_config_says_so(tmp_path: Path) -> None:
    save(tmp_path, range(1, 9), "ema.keep_snapshots=1")
    assert names(tmp_path / "ema") == ["step-00000008"]


def test_a_resume_removes_snapshots_of_steps_that_it_trains_again(tmp_path: Path) -> None:
    save(tmp_path, range(1, 9))
    (tmp_path / "ema" / ".tmp-step-00000010").mkdir()
    checkpoint = open_checkpoint(tmp_path / "checkpoints" / "step-00000007", Communicator())
    experiment = CASES["ddpm"].experiment(f"run.dir={tmp_path}", *POWER)
    assert snapshots.recover(experiment, checkpoint) is None
    left = sorted(path.name for path in (tmp_path / "ema").iterdir())
    assert left == ["latest", "step-00000002", "step-00000004", "step-00000006"]


def test_snapshots_without_a_checkpoint_are_of_an_earlier_run(tmp_path: Path) -> None:
    save(tmp_path, range(1, 5))
    experiment = CASES["ddpm"].experiment(f"run.dir={tmp_path}", *POWER)
    (tmp_path / "ema-before-1").mkdir()
    message = snapshots.recover(experiment, None)
    assert message == (
        f"{tmp_path}/ema held averages of an earlier run that has no checkpoint; renamed to ema-before-2"
    )
    assert names(tmp_path / "ema-before-2") == ["step-00000002", "step-00000004"]
    assert snapshots.recover(experiment, None) is None
