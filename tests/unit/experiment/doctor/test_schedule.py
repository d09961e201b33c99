"""Steps that are too few for the warm-up or for snapshots."""

from __future__ import annotations

from diffpipe.experiment.doctor.schedule import too_few_steps
from tests.support.stage_cases import CASES


def findings(*words: str) -> list[str]:
    experiment = CASES["ddpm"].experiment("train.steps=10", *words)
    return [f"{finding.level}: {finding.message}" for finding in too_few_steps(experiment)]


def test_a_warmup_that_outlasts_the_run_is_found() -> None:
    assert not findings("optimizer.warmup=9")
    (text,) = findings("optimizer.warmup=10")
    assert text.startswith("warning: optimizer.warmup=10 and train.steps=10: the run ends before its learning rate")


def test_a_run_without_snapshots_of_its_averages_is_noted() -> None:
    assert not findings("optimizer.warmup=0", "ema={kind: power, snapshot_every: 10}")
    (text,) = findings("optimizer.warmup=0", "ema={kind: power, snapshot_every: 11}")
    assert text.startswith("note: ema.snapshot_every=11 and train.steps=10: there will be no snapshots")
