"""Killed while it writes a snapshot of power-function averages: each one is complete, and the run resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.commands import tensors
from tests.support.training_jobs import TrainingJob, is_intact, train_to_end

POWER = ("ema={kind: power, snapshot_every: 1, keep_snapshots: 3}", "checkpoint.every=1")
MODULE = "tests.faults.fault_at_save"
BETWEEN = 5
"""A kill at every so many changes: before the first file, between files, before the rename, while it prunes."""


def snapshots(run: Path) -> list[str]:
    """The committed snapshots. Each must be intact."""
    paths = sorted(run.glob("ema/step-*"))
    assert all(map(is_intact, paths)), paths
    return [path.name for path in paths]


def test_killed_at_changes_of_the_snapshots_folder_and_resumed(tmp_path: Path) -> None:
    run, n, killed = tmp_path / "run", 1, True
    train_to_end(run, "train.steps=2", *POWER)
    end, partial = 2, 0
    while killed:
        assert n < 60
        end += 1
        fault = json.dumps({"n": n, "folder": "ema"})
        status, _ = TrainingJob(run, f"train.steps={end}", *POWER, module=MODULE, fault_at_save=fault).wait()
        killed, n = status != 0, n + BETWEEN
        left = [path.name for path in run.glob("ema/*") if not path.name.startswith("step-")]
        partial += bool(left)
        kept = snapshots(run)
        assert len(kept) >= 2
        # The job that goes on removes what the kill has left, and writes the snapshots that are missing.
        train_to_end(run, f"train.steps={end}", *POWER)
        assert not [path for path in run.glob("ema/.*") if "step-" in path.name]
    assert partial, "no kill came while a snapshot was written"
    assert n > 2 * BETWEEN
    train_to_end(tmp_path / "uninterrupted", f"train.steps={end}", *POWER)
    assert snapshots(run)[-1:] == snapshots(tmp_path / "uninterrupted")[-1:] == [f"step-{end:08d}"]
    for folder in ("checkpoints", "ema"):
        expected = tensors(tmp_path / "uninterrupted" / folder / f"step-{end:08d}")
        actual = tensors(run / folder / f"step-{end:08d}")
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].tobytes() == tensor.tobytes(), (folder, name)
