"""Every stage sharded by FSDP2 and HSDP: the steps of one process, and each process holds its part of the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Loss, Stage
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.parallel import Parallel, ParallelStrategy, full_tensor
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.stage_cases import CASES, real_batch
from tests.support.toy_stages import Toy, batch

BATCH, STEPS = 12, 4


class Ended(NamedTuple):
    """How a few steps of a case ended: the losses, the whole state, and the bytes of it that this process held."""

    losses: list[float]
    state: dict[str, Any]
    held: int


def share(step: int, runtime: Runtime) -> list[Batch]:
    """This rank's positions of the step, in two uneven micro-batches."""
    every = real_batch(BATCH * STEPS)
    places = [*range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)]
    parts = [places[:1], places[1:]]
    assert every.labels is not None
    return [
        Batch(every.images[part], every.labels[part], every.positions[part], [every.keys[i] for i in part])
        for part in parts
    ]


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(settings: dict[str, Any], cases: Sequence[str]) -> dict[str, Ended]:
    """A few steps of each case, by its name."""
    ended = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name in cases:
            # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
            optimizer = OptimizerConfig(lr=5e-3, warmup=0, betas=(0.0, 0.99), eps=1e-3, clip=100.0)
            config = TrainConfig(steps=STEPS, accumulate=2, log_every=1, **settings)
            trainer = Trainer(CASES[name].stage(), runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
            losses = []
            for step in range(STEPS):
                trainer.train_step(share(step, runtime))
                losses.append(trainer._log_values()["loss"])
            state = {key: full_tensor(tensor).numpy() for key, tensor in trainer.state().items()}
            ema_networks = trainer.ema_networks()
            for key, tensor in [
                (f"ema.{n}.{k}", t) for n, net in ema_networks.items() for k, t in net.state_dict().items()
            ]:
                assert torch.equal(tensor, torch.from_numpy(state[key])), key
            held = sum(local(t).numel() * t.element_size() for t in trainer.state().values())
            ended[name] = Ended(losses, state, held)
    return ended


@pytest.fixture(scope="module")
def alone() -> dict[str, Ended]:
    return train({}, list(CASES))


@pytest.mark.parametrize(
    ("world", "settings", "cases"),
    [(2, {"parallel": "fsdp"}, list(CASES)), (4, {"parallel": "hsdp", "shard_size": 2}, ["ddpm", "gan"])],
)
def test_sharded_processes_train_as_one_and_hold_a_part_each(
    alone: dict[str, Ended], world: int, settings: dict[str, Any], cases: list[str]
) -> None:
    ranks = run(world, train, settings, cases)
    for name in cases:
        one = alone[name]
        for rank in ranks:
            assert rank[name].losses == pytest.approx(one.losses, rel=1e-4), name
            assert rank[name].state.keys() == one.state.keys()
            for key, tensor in one.state.items():
                assert rank[name].state[key] == pytest.approx(tensor, abs=2e-4), (name, key)
            assert rank[name].held <= 0.55 * one.held, name


RESUMED = ("ddpm", "gan", "latent_vae, patch")


def resumed(parallel: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The state of a few steps, taken without a break, and with a fresh trainer that goes on from the third."""
    ended = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name in RESUMED:
            config = TrainConfig.model_validate({"steps": STEPS, "accumulate": 2, "parallel": parallel})

            def fresh(name: str = name, config: TrainConfig = config) -> Trainer:
                optimizer, stage = OptimizerConfig(lr=5e-3, warmup=0), CASES[name].stage()
                return Trainer(stage, runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)

            straight, again = fresh(), fresh()
            for step in range(STEPS):
                if step == STEPS - 1:
                    for key, tensor in again.state().items():
                        tensor.copy_(straight.state()[key])
                    again.step = step
                    again.train_step(share(step, runtime))
                straight.train_step(share(step, runtime))
            ended[name] = tuple({k: full_tensor(t).numpy() for k, t in t.state().items()} for t in (straight, again))
    return ended


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_three_processes_go_on_bit_for_bit(parallel: str) -> None:
    for name, (straight, again) in run(3, resumed, parallel)[0].items():
        for key, tensor in straight.items():
            assert tensor.tobytes() == again[key].tobytes(), (name, key)


def layouts(world: int) -> list[str]:
    """What is said of settings that cannot be."""
    said = []
    with Runtime.start("fp32", "cpu") as runtime:
        told = dataclasses.replace(runtime, launched_for_fsdp=True)
        asked: list[tuple[Parallel, int | None, Runtime]] = [
            ("hsdp", 3, runtime),
            ("ddp", None, told),
            ("fsdp", 2, runtime),
        ]
        for parallel, shard_size, where in asked:
            with pytest.raises(UserError) as refusal:
                ParallelStrategy.of(parallel, shard_size, where)
            said.append(str(refusal.value))
        assert ParallelStrategy.of("auto", None, runtime).mesh is None
        sharded = ParallelStrategy.of("auto", None, told).mesh
        assert sharded is not None
        assert sharded.size() == world
        whole_node = ParallelStrategy.of("hsdp", None, runtime).mesh
        assert whole_node is not None
        assert whole_node.shape == (1, world)
    return said


def test_the_launcher_and_the_config_must_agree() -> None:
    for divided, launched, sized in run(2, layouts, 2):
        assert "train.shard_size to a divisor of 2" in divided
        assert "accelerate launch was started with FSDP, and train.parallel is ddp" in launched
        assert "train.shard_size is for train.parallel=hsdp" in sized


def test_what_accelerate_is_told_and_is_not_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, words in [
        ("FSDP_VERSION", "1", "use --fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "FSDP_OFFLOAD_PARAMS=true"),
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "use train.parallel=hsdp"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "use train.precision instead"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "use train.parallel=fsdp"),
    ]:
        with monkeypatch.context() as env:
            env.setenv("ACCELERATE_USE_FSDP", "true")
            env.setenv(name, value)
            with pytest.raises(UserError, match=words):
                Runtime.start("fp32", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with Runtime.start("fp32", "cpu") as runtime:
        assert runtime.launched_for_fsdp


class OneBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def blocks(self) -> list[nn.Module]:
        return [self.linear]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Overflowing(Toy):
    """The loss of position 5, on rank 1 of two, is finite, and the scaled one is not."""

    def networks(self) -> dict[str, nn.Module]:
        return {"point": OneBlock()}

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        return Loss(loss.per_sample * torch.where(batch.positions == 5, 1e37, 1e-3))


def overflow() -> tuple[list[float], list[bool], bool]:
    """Sharded fp16 in which rank 1 alone overflows in the second of three steps: the scales, whether weights moved."""
    with Runtime.start("fp16", "cpu") as runtime:
        config = TrainConfig(steps=3, log_every=1, parallel="fsdp")
        trainer = Trainer(Overflowing(), runtime, config, OptimizerConfig(), EMAConfig(), seed=5, batch_size=4)
        scales, moved = [], []
        for step in range(3):
            images = batch(range(4 * step + runtime.rank, 4 * step + 4, 2))
            before = {
                key: full_tensor(tensor).clone() for key, tensor in trainer.state().items() if key.startswith("net.")
            }
            trainer.train_step([images])
            state = trainer.state()
            moved.append(any(not torch.equal(before[key], full_tensor(state[key])) for key in before))
            scales.append(next(t.item() for key, t in state.items() if key.endswith("scale")))
        sharded = all(isinstance(p, DTensor) for net in trainer.nets.values() for p in net.parameters())
    return scales, moved, sharded


def test_an_overflow_on_one_rank_is_skipped_and_halves_the_scale_on_all() -> None:
    first, second = run(2, overflow)
    assert first == second == ([65536.0, 32768.0, 32768.0], [True, False, True], True)


def without_blocks(parallel: str, stage: Stage) -> str:
    with Runtime.start("fp32", "cpu") as runtime:
        config = TrainConfig.model_validate({"steps": 1, "parallel": parallel})
        with pytest.raises(UserError) as refusal:
            Trainer(stage, runtime, config, OptimizerConfig(), EMAConfig(), seed=5, batch_size=4)
        return str(refusal.value)


@pytest.mark.parametrize("parallel", ["fsdp", "hsdp"])
def test_a_network_without_blocks_is_not_sharded(parallel: str) -> None:
    for refusal in run(2, without_blocks, parallel, Toy()):
        assert f"train.parallel={parallel} works on the blocks of a network, and the network point (Linear)" in refusal


def reductions(parallel: str, accumulate: int) -> int:
    """How often gradients are reduced over the processes in the second step."""
    reduced = 0

    def counted(reduce: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal reduced
            reduced += 1
            return reduce(*args, **options)

        return call

    with Runtime.start("fp32", "cpu") as runtime:
        config = TrainConfig.model_validate({"steps": 2, "accumulate": accumulate, "parallel": parallel})
        trainer = Trainer(
            CASES["ddpm"].stage(), runtime, config, OptimizerConfig(), EMAConfig(), seed=5, batch_size=BATCH
        )
        if parallel == "ddp":
            net: Any = trainer.wrapped["denoiser"]

            def hook(state, bucket):  # without types: DDP would read them as text
                nonlocal reduced
                reduced += 1
                return allreduce_hook(state, bucket)

            net.register_comm_hook(dist.group.WORLD, hook)
        for name in ("reduce_scatter_single", "reduce_scatter_tensor"):  # what FSDP calls, by torch's version
            if hasattr(dist, name):
                setattr(dist, name, counted(getattr(dist, name)))
        for step in range(2):
            reduced = 0
            trainer.train_step([micro for micro in share(step, runtime) for _ in range(accumulate // 2)])
    return reduced


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_gradients_are_reduced_after_the_last_micro_batch_alone(parallel: str) -> None:
    few, many = (run(2, reductions, parallel, accumulate)[0] for accumulate in (2, 6))
    assert 0 < few == many
