"""Sums over a global batch: of all micro-batches, and neither of a pass that does not count nor of a skipped update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.interfaces import Batch, Loss, Phase, Tracks
from diffpipe.rng import KeyedRNG
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.operator_counts import OperatorCounts
from tests.support.toy_stages import Toy, batch


class Tally(nn.Module):
    """Counts samples and sums their positions."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))


class Counting(Toy):
    """Tracks how many samples it has seen, and the sum of their positions. A position in `broken` has loss NaN."""

    def __init__(self, broken: tuple[int, ...] = ()):
        self.broken = broken

    def networks(self) -> dict[str, nn.Module]:
        return super().networks() | {"tally": Tally()}

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        loss = super().loss(phase, nets, batch, rng)
        broken = torch.isin(batch.positions, torch.tensor(self.broken, dtype=torch.int64))
        sums = {"seen": torch.stack([torch.ones(len(broken)), batch.positions.float()]).sum(1)}
        return Loss(loss.per_sample.masked_fill(broken, torch.nan), sums=sums)

    def track(self, phase: Phase, nets: Mapping[str, nn.Module], sums: Mapping[str, Tensor], taken: Tensor) -> None:
        total: Any = nets["tally"].total
        total.copy_(torch.where(taken, total + sums["seen"], total))


def trainer(runtime: Runtime, stage: Counting, **config: Any) -> Trainer:
    settings = TrainConfig.model_validate({"steps": 6, "log_every": 1, **config})
    return Trainer(stage, runtime, settings, OptimizerConfig(lr=0.01, warmup=0), EMAConfig(), seed=0, batch_size=8)


def total(t: Trainer) -> list[float]:
    return t.state()["net.tally.total"].tolist()


def test_a_stage_gets_the_sums_of_the_whole_batch_in_every_split(runtime: Runtime) -> None:
    assert isinstance(Counting(), Tracks)
    for parts in ([8], [4, 4], [1, 5, 2]):
        t, first = trainer(runtime, Counting(), accumulate=len(parts)), 0
        micro_batches = []
        for part in parts:
            micro_batches.append(batch(range(first, first + part)))
            first += part
        t.train_step(micro_batches)
        assert total(t) == [8, 28]


def test_an_update_that_is_left_out_changes_nothing(runtime: Runtime) -> None:
    t = trainer(runtime, Counting(broken=(5,)), non_finite="skip")
    t.train_step([batch(range(8))])
    assert total(t) == [0, 0]
    t.train_step([batch(range(8, 16))])
    assert total(t) == [8, 92]


def test_nothing_waits_for_the_device(runtime: Runtime) -> None:
    t = trainer(runtime, Counting(), accumulate=2)
    for _ in range(2):
        with OperatorCounts() as calls:
            t.train_step([batch(range(4)), batch(range(4, 8))])
    assert calls.counts["_local_scalar_dense"] == 0


def tracked() -> list[float]:
    """After two steps. Under DDP the first one begins with a pass that does not count."""
    with Runtime.start("fp32", "cpu") as runtime:
        t = trainer(runtime, Counting(), accumulate=2)
        for step in range(2):
            positions = range(8 * step + runtime.rank, 8 * step + 8, runtime.world)
            t.train_step([batch(positions[:1]), batch(positions[1:])])
        return total(t)


@pytest.mark.parametrize("world", [2, 3])
def test_the_processes_of_a_job_hold_the_same_sums(world: int) -> None:
    assert run(world, tracked) == world * [[16, 120]]
