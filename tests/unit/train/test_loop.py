"""The loop with toy stages: host syncs, phases, micro-batches, logs, hooks and non-finite losses."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Stage
from diffpipe.resolution import square
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.hooks import Hook
from diffpipe.train.loop import Trainer
from diffpipe.train.nonfinite import NonFiniteError
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.operator_counts import OperatorCounts
from tests.support.toy_stages import Duel, Toy, batch

UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (2,), "groups": 4, "dropout": 0.1}


def trainer(runtime: Runtime, stage: Stage, **config: Any) -> Trainer:
    train = TrainConfig.model_validate({"steps": 6, "log_every": 1, **config})
    return Trainer(stage, runtime, train, OptimizerConfig(lr=0.01, warmup=0), EMAConfig(), seed=0, batch_size=8)


def stream(start: int = 0, size: int = 8) -> Iterator[Batch]:
    return (batch(range(i * size, (i + 1) * size)) for i in itertools.count(start))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_between_two_log_steps_does_not_wait_for_the_device(precision: Any) -> None:
    stage = DDPMConfig.model_validate({"kind": "ddpm", "network": UNET, "conditional": True}).build(
        ImageShape(1, square(4), 3)
    )
    with Runtime.start(precision, "cpu") as runtime:
        t = trainer(runtime, stage, accumulate=2)
        micro = [batch(range(4))._replace(labels=torch.arange(4) % 3) for _ in range(2)]
        t.train_step(micro)  # the first step allocates what later ones reuse
        with OperatorCounts() as calls:
            t.train_step(micro)
        assert calls.counts["_fused_adamw_"] > 0  # the mode has counted the step
        assert calls.counts["_local_scalar_dense"] == 0
        with OperatorCounts() as calls:
            t.log_values()
        assert calls.counts["_local_scalar_dense"] > 0  # and would have counted a wait


def test_accumulated_micro_batches_make_the_step_of_the_full_batch(runtime: Runtime) -> None:
    full, parts, uneven = (trainer(runtime, Toy()) for _ in range(3))
    for i in range(4):
        p = range(8 * i, 8 * i + 8)
        full.train_step([batch(p)])
        parts.train_step([batch(p[:4]), batch(p[4:])])
        uneven.train_step([batch(p[:1]), batch(p[1:])])
    for t in (parts, uneven):
        for name, tensor in full.state().items():
            torch.testing.assert_close(t.state()[name], tensor, rtol=1e-5, atol=1e-7)


def test_metrics_are_means_since_the_last_log_step(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, Toy(), log_every=3)
    called: list[int] = []
    t.run(
        stream(), [Hook(2, lambda: called.append(t.step)), Hook(4, lambda: called.append(-t.step), last=True)], tmp_path
    )
    assert called == [2, 4, -4, 6, -6]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    pixels = torch.stack([b.images.float().mean() / 255 for b, _ in zip(stream(), range(6), strict=False)])
    assert lines[0]["pixel"] == pytest.approx(pixels[:2].mean().item(), rel=1e-5)
    assert lines[3]["pixel"] == pytest.approx(pixels[4:].mean().item(), rel=1e-5)
    assert {"step", "images", "loss", "grad_norm", "lr", "images_per_second"} <= lines[0].keys()
    assert lines[3]["images"] == 48


def test_phases_train_their_own_networks_when_due(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, Duel(), steps=1)
    before = {name: tensor.clone() for name, tensor in t.state().items()}
    for step in range(4):
        t.train_step([next(stream(step))])
        now = t.state()
        moved = {
            net for net in ("first", "second") if not torch.equal(now[f"net.{net}.weight"], before[f"net.{net}.weight"])
        }
        assert moved == ({"first", "second"} if step % 2 else {"first"})
        before = {name: tensor.clone() for name, tensor in now.items()}
    assert t.state()["optimizer.first.first.weight.step"] == 4
    assert t.state()["optimizer.second.second.weight.step"] == 2
    assert not any(name.startswith(("optimizer.first.second", "optimizer.second.first")) for name in t.state())


def test_a_learning_rate_for_an_unknown_network_is_refused(runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"optimizer.lr_factors names critic, and this stage's networks are point"):
        Trainer(
            Toy(),
            runtime,
            TrainConfig(steps=1),
            OptimizerConfig(lr_factors={"critic": 2.0}),
            EMAConfig(),
            seed=0,
            batch_size=8,
        )


def test_the_averages_move_and_are_not_the_weights(runtime: Runtime) -> None:
    t = trainer(runtime, Toy())
    start = t.ema_networks()["point"].state_dict()["weight"].clone()
    for i in range(4):
        t.train_step([next(stream(i))])
    average = t.ema_networks()["point"].state_dict()["weight"]
    assert not torch.equal(average, start)
    assert not torch.equal(average, t.nets["point"].state_dict()["weight"])


class NaNLoss(Toy):
    """Its loss is NaN for one sample."""

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        return type(loss)(torch.where(batch.positions == 19, torch.nan, loss.per_sample), loss.metrics)


def test_a_nonfinite_loss_stops_the_run_and_names_the_sample(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, NaNLoss(), log_every=3)
    saved: list[int] = []
    with pytest.raises(NonFiniteError, match=r"step 2, rank 0: the loss of key19 is not finite"):
        t.run(stream(), [Hook(1, lambda: saved.append(t.step))], tmp_path)
    assert saved == [1, 2]  # nothing is saved after it
    assert all(torch.isfinite(tensor).all() for tensor in t.state().values())


class InfiniteLoss(Toy):
    """One sample's loss is infinite, with a finite gradient."""

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        return type(loss)(loss.per_sample + torch.where(batch.positions == 19, torch.inf, 0), loss.metrics)


class InfiniteGradient(Toy):
    """One sample's loss is finite and its gradient is not: a square root at zero."""

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        zero = (loss.per_sample - loss.per_sample.detach()).where(batch.positions == 19, 1)
        return type(loss)(loss.per_sample + zero.abs().sqrt(), loss.metrics)


@pytest.mark.parametrize(
    ("stage", "warning"),
    [
        (NaNLoss, "step 2, rank 0: the loss of key19 is not finite"),
        (InfiniteLoss, "step 2, rank 0: the loss of key19 is not finite"),
        (
            InfiniteGradient,
            "step 2, rank 0: the gradient of key16, key17, key18, key19, key20, key21, key22, key23 is not finite",
        ),
    ],
)
def test_a_nonfinite_update_is_skipped_where_it_may_be(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: type[Toy], warning: str
) -> None:
    t = trainer(runtime, stage(), non_finite="skip", log_every=2)
    weights = []
    t.run(stream(), [Hook(1, lambda: weights.append(t.nets["point"].state_dict()["weight"].clone()))], tmp_path)
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [False, True, False, False, False]
    assert f"{warning}; skipped, 1 of 10" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped") for line in lines] == [None, None, 1, 1, 1, 1]
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_a_run_stops_above_the_limit_of_skipped_updates(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, NaNLoss(), non_finite="skip", max_skips=1)
    t.skipped = 1  # before it was resumed
    with pytest.raises(NonFiniteError, match=r"2 updates were skipped and train\.max_skips is 1"):
        t.run(stream(), [], tmp_path)
    assert t.step == 3


def test_a_stopped_run_ends_with_that_step_and_calls_no_hook(runtime: Runtime, tmp_path: Path) -> None:
    t, ran = trainer(runtime, Toy(), log_every=4), []
    t.run(stream(), [Hook(3, lambda: ran.append(t.step), last=True)], tmp_path, stop=lambda: t.step == 3)
    assert (t.step, ran) == (3, [])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3]


def test_the_metrics_log_drops_steps_that_are_trained_again_and_partial_lines(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, Toy(), record_samples=True)
    t.run(stream(), [], tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    resumed = trainer(runtime, Toy(), record_samples=True)
    resumed.step = 4
    resumed.run(stream(4), [], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    seen = [json.loads(line) for line in (tmp_path / "seen/rank-00000.jsonl").read_text().splitlines()]
    assert [line["step"] for line in seen] == [0, 1, 2, 3, 4, 5, 4, 5]
    assert seen[4] == seen[6]
    assert seen[4]["positions"] == list(range(32, 40))
    assert seen[4]["keys"] == [f"key{i}" for i in range(32, 40)]
