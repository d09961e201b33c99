"""A budget of minutes: the last step by recorded times, and steps that are trained again by the same records."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.hooks import Hook
from diffpipe.train.loop import Trainer
from diffpipe.train.meter import Meter
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from diffpipe.train.time_budget import JOURNAL, TimeBudget
from tests.support.toy_stages import Toy, batch


def test_without_minutes_the_last_step_is_that_of_the_config(runtime: Runtime) -> None:
    budget = TimeBudget(100, None)
    budget.record(0, 10, 1e9, runtime)
    assert budget.last_step(10) == 100
    assert budget.state(10) is None


def test_the_last_step_is_where_the_mean_time_of_a_step_spends_the_minutes(runtime: Runtime) -> None:
    budget = TimeBudget(1000, 1.0)
    assert budget.last_step(0) == 1000  # no step is timed yet
    budget.record(0, 10, 5.0, runtime)
    assert [budget.last_step(step) for step in (9, 10, 11)] == [1000, 120, 120]
    budget.record(10, 20, 15.0, runtime)  # 20 s for 20 steps
    assert budget.last_step(20) == 60
    budget.record(20, 40, 50.0, runtime)  # the time is over: one more step
    assert [budget.last_step(step) for step in (40, 41)] == [41, 41]
    budget.record(40, 41, 1.0, runtime)
    assert budget.last_step(41) == 41
    assert TimeBudget(30, 1.0).last_step(0) == 30
    capped = TimeBudget(30, 1.0)
    capped.record(0, 10, 1.0, runtime)
    assert capped.last_step(10) == 30


def test_a_restored_budget_goes_on_and_one_of_a_run_without_time_begins_there(runtime: Runtime) -> None:
    budget = TimeBudget(1000, 1.0)
    budget.record(0, 10, 5.0, runtime)
    restored = TimeBudget(1000, 1.0)
    restored.restore(budget.state(12), 12)
    assert restored.last_step(12) == budget.last_step(12) == 120
    late = TimeBudget(1000, 1.0)
    late.restore(None, 500)
    assert late.last_step(500) == 1000
    late.record(500, 510, 6.0, runtime)
    assert late.last_step(510) == 600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each interval between two log steps, which tests set."""
    seconds: list[float] = [1.0]
    means = Meter.means

    def timed(meter: Meter, runtime: Runtime) -> Any:
        return means(meter, runtime)[0], seconds[0] * (1 + 0.3 * math.sin(meter.first))

    monkeypatch.setattr(Meter, "means", timed)
    return seconds


def trainer(runtime: Runtime, minutes: float = 1.0) -> Trainer:
    config = TrainConfig(steps=1000, log_every=3, minutes=minutes)
    optimizer = OptimizerConfig(lr=0.01, warmup=2, decay="cosine")
    return Trainer(Toy(), runtime, config, optimizer, EMAConfig(), seed=0, batch_size=8)


def train(t: Trainer, home: Path, **options: Any) -> dict[int, dict[str, Any]]:
    """Train to the end from where the trainer is: the lines of metrics.jsonl by step."""
    batches = (batch(range(8 * step, 8 * step + 8)) for step in itertools.count(t.step))
    t.run(batches, [Hook(0, lambda: None, last=True)], home, **options)
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines}


def test_steps_that_are_trained_again_have_the_same_learning_rates_and_bits(
    runtime: Runtime, tmp_path: Path, clock: list[float]
) -> None:
    straight = trainer(runtime)
    lines = train(straight, tmp_path / "straight")
    last = straight.step
    assert last in lines
    assert 0.8 * 180 < last < 1.2 * 180  # a second for each three steps
    assert lines[last]["minutes"] == pytest.approx(1.0, abs=0.05)
    assert lines[last]["lr"] < 1e-4 < 0.009 < lines[12]["lr"]

    # A job that saved after step 60 and was killed at the end: its journal has later records than the checkpoint.
    saved: dict[str, Any] = {}

    def save(t: Trainer) -> bool:
        if t.step == 60:
            saved["tensors"] = {name: tensor.clone() for name, tensor in t.state().items()}
            saved["time"] = t.budget.state(60)
        return False

    killed = trainer(runtime)
    train(killed, tmp_path / "killed", stop=lambda: save(killed))
    shutil.copytree(tmp_path / "killed", tmp_path / "resumed")
    clock[0] = 7.0  # the machine is slower now
    resumed = trainer(runtime)
    for name, tensor in resumed.state().items():
        tensor.copy_(saved["tensors"][name])
    resumed.step, resumed.position = 60, 480
    resumed.budget.restore(saved["time"], 60)
    again = train(resumed, tmp_path / "resumed")
    assert {step: line["lr"] for step, line in again.items()} == {step: line["lr"] for step, line in lines.items()}
    assert resumed.step == last
    assert all(torch.equal(tensor, straight.state()[name]) for name, tensor in resumed.state().items())

    # Without the later records the time goes on from the checkpoint's.
    (tmp_path / "killed" / JOURNAL).unlink()
    slower = trainer(runtime)
    slower.step, slower.position = 60, 480
    slower.budget.restore(saved["time"], 60)
    train(slower, tmp_path / "killed")
    assert 60 + 60 / 7 < slower.step < last


def test_a_run_from_scratch_begins_a_journal_of_its_own(runtime: Runtime, tmp_path: Path, clock: list[float]) -> None:
    train(trainer(runtime), tmp_path)
    clock[0] = 10.0
    t = trainer(runtime)
    train(t, tmp_path)
    assert t.step < 40
    steps = [json.loads(line)["step"] for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert steps == list(range(3, t.step, 3))
