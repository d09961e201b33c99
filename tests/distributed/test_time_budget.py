"""A budget of minutes on two processes whose clocks differ: rank 0's counts, and both end with the same step."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.hooks import Hook
from diffpipe.train.loop import Trainer
from diffpipe.train.meter import Meter
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from diffpipe.train.time_budget import JOURNAL
from tests.support.gloo_processes import run
from tests.support.toy_stages import Toy, batch


def train(home: Path, seconds: float) -> tuple[int, list[int], dict[str, bytes]]:
    """Train for a minute, three steps in so many seconds on rank 0's clock; rank 1's is ten times as fast.

    Returns the last step, the steps at which the hook of the last step was called, and the bytes of the state.
    """
    means = Meter.means

    def timed(meter: Meter, runtime: Runtime) -> Any:
        return means(meter, runtime)[0], seconds * (1 + 9 * runtime.rank)

    with pytest.MonkeyPatch.context() as patch, Runtime.start("fp32", "cpu") as runtime:
        patch.setattr(Meter, "means", timed)
        config = TrainConfig(steps=1000, log_every=3, minutes=1.0)
        optimizer = OptimizerConfig(lr=0.01, warmup=2, decay="cosine")
        trainer = Trainer(Toy(), runtime, config, optimizer, EMAConfig(), seed=0, batch_size=8)
        batches = (batch(range(8 * step + runtime.rank, 8 * step + 8, 2)) for step in itertools.count())
        ends: list[int] = []
        trainer.run(batches, [Hook(0, lambda: ends.append(trainer.step), last=True)], home)
        return trainer.step, ends, {name: tensor.numpy().tobytes() for name, tensor in trainer.state().items()}


@pytest.mark.parametrize(("seconds", "last"), [(2.0, 90), (30.0, 6)])
def test_two_processes_agree_on_the_last_step(tmp_path: Path, seconds: float, last: int) -> None:
    first, second = run(2, train, tmp_path, seconds)
    assert first == second
    step, ends, _ = first
    assert ends == [step]
    assert step == last
    records = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(3, step, 3))
    assert records[0]["seconds"] == seconds
