"""Room for checkpoints, snapshots and grids."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.experiment.doctor.disk import free_bytes, saved_bytes, too_little_room
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from tests.support.runs import saved_run
from tests.support.stage_cases import CASES

GB = 10**9
SHAPE = ImageShape(3, square(32))


def findings(*words: str, free: int, saved: tuple[int, ...] = ()) -> list[Finding]:
    words = ("train.steps=10000", "checkpoint.every=1000", "sample.every=0", *words)
    return [*too_little_room(CASES["ddpm"].experiment(*words), SHAPE, 4 * GB, GB, saved=saved, free=free)]


def test_one_checkpoint_more_than_are_kept_finds_room() -> None:
    assert findings(free=12 * GB) == []
    assert findings(free=8 * GB, saved=(4 * GB,)) == []
    assert findings("checkpoint.every=0", free=4 * GB, saved=(4 * GB, 4 * GB)) == []
    assert findings("checkpoint.every=0", free=4 * GB) == []
    (finding,) = findings("checkpoint.keep_last=4", free=12 * GB)
    assert finding.level == "error"
    assert "5 checkpoints of 4.0 GB are there at a time, and 12.0 GB are free" in finding.problem
    assert finding.remedy.startswith("free 8.0 GB, lower checkpoint.keep_last")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["checkpoint.keep_every=1000"], "40.0 GB of them checkpoints of checkpoint.keep_every"),
        (["ema={kind: power, snapshot_every: 100}"], "100.0 GB of them snapshots of averages"),
        (["sample.every=1", "sample.n=1000"], "30.7 GB of them grids of samples"),
    ],
)
def test_what_is_kept_until_the_last_step_is_a_warning(words: list[str], what: str) -> None:
    (finding,) = findings(*words, free=13 * GB)
    assert finding.level == "warning"
    assert what in finding.problem
    assert findings(*words, free=200 * GB) == []
    assert findings("ema={kind: power, snapshot_every: 100, keep_snapshots: 2}", free=15 * GB) == []


def test_the_bytes_of_a_run_are_those_of_its_kept_checkpoints(tmp_path: Path) -> None:
    experiment = saved_run(tmp_path / "run", steps=(1, 2, 3))
    of_one = sum(file.stat().st_size for file in (tmp_path / "run/checkpoints/step-00000003").iterdir())
    assert saved_bytes(experiment) == pytest.approx([of_one] * 2, rel=0.01)
    assert saved_bytes(CASES["ddpm"].experiment(f"run.dir={tmp_path / 'new'}")) == []
    assert free_bytes(tmp_path / "not" / "yet") > 0
