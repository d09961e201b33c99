"""Every stage sharded by FSDP2 and HSDP: the steps equal those of one process, and each process holds its shards."""

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
from tests.support.stage_cases import CASES, TOKENS, real_batch
from tests.support.toy_stages import OneBlock, Toy, batch

BATCH, STEPS = 12, 4


class Result(NamedTuple):
    """After a few steps of a case: the losses, the full state, and the bytes of it that this process holds."""

    losses: list[float]
    state: dict[str, Any]
    held: int


def share(step: int, runtime: Runtime) -> list[Batch]:
    """This rank's positions of the step, in two uneven micro-batches."""
    full = real_batch(BATCH * STEPS)
    positions = [*range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)]
    parts = [positions[:1], positions[1:]]
    assert full.labels is not None
    return [
        Batch(full.images[part], full.labels[part], full.positions[part], [full.keys[i] for i in part])
        for part in parts
    ]


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(settings: dict[str, Any], cases: Sequence[str]) -> dict[str, Result]:
    """The result of a few steps of each case, by name."""
    results = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name in cases:
            # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
            optimizer = OptimizerConfig(lr=5e-3, warmup=0, betas=(0.0, 0.99), eps=1e-3, clip=100.0)
            config = TrainConfig(steps=STEPS, accumulate=2, log_every=1, **settings)
            trainer = Trainer(CASES[name].stage(), runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
            losses = []
            for step in range(STEPS):
                trainer.train_step(share(step, runtime))
                losses.append(trainer.log_values()["loss"])
            state = {key: full_tensor(tensor).numpy() for key, tensor in trainer.state().items()}
            ema_networks = trainer.ema_networks()
            for key, tensor in [
                (f"ema.{n}.{k}", t) for n, net in ema_networks.items() for k, t in net.state_dict().items()
            ]:
                assert torch.equal(tensor, torch.from_numpy(state[key])), key
            held = sum(local(t).numel() * t.element_size() for t in trainer.state().values())
            results[name] = Result(losses, state, held)
    return results


@pytest.fixture(scope="module")
def single() -> dict[str, Result]:
    return train({}, list(CASES))


@pytest.mark.parametrize(
    ("world", "settings", "cases"),
    [(2, {"parallel": "fsdp"}, list(CASES)), (4, {"parallel": "hsdp", "shard_size": 2}, ["ddpm", "gan"])],
)
def test_sharded_processes_train_as_one_and_each_holds_its_shards(
    single: dict[str, Result], world: int, settings: dict[str, Any], cases: list[str]
) -> None:
    ranks = run(world, train, settings, cases)
    for name in cases:
        one = single[name]
        for rank in ranks:
            assert rank[name].losses == pytest.approx(one.losses, rel=1e-4), name
            assert rank[name].state.keys() == one.state.keys()
            for key, tensor in one.state.items():
                assert rank[name].state[key] == pytest.approx(tensor, abs=2e-4), (name, key)
            assert rank[name].held <= 0.55 * one.held, name


RESUMED = ("gan", *TOKENS)  # every stage is resumed in integration/test_all_stages.py


def resumed(parallel: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The state after a few steps, uninterrupted and with a fresh trainer that resumes after the third."""
    results = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name in RESUMED:
            config = TrainConfig.model_validate({"steps": STEPS, "accumulate": 2, "parallel": parallel})

            def fresh(name: str = name, config: TrainConfig = config) -> Trainer:
                optimizer, stage = OptimizerConfig(lr=5e-3, warmup=0), CASES[name].stage()
                return Trainer(stage, runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)

            uninterrupted, restarted = fresh(), fresh()
            for step in range(STEPS):
                if step == STEPS - 1:
                    for key, tensor in restarted.state().items():
                        tensor.copy_(uninterrupted.state()[key])
                    restarted.step = step
                    restarted.train_step(share(step, runtime))
                uninterrupted.train_step(share(step, runtime))
            results[name] = tuple(
                {k: full_tensor(t).numpy() for k, t in t.state().items()} for t in (uninterrupted, restarted)
            )
    return results


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_three_processes_resume_bit_for_bit(parallel: str) -> None:
    for name, (uninterrupted, restarted) in run(3, resumed, parallel)[0].items():
        for key, tensor in uninterrupted.items():
            assert tensor.tobytes() == restarted[key].tobytes(), (name, key)


def refusals(world: int) -> list[str]:
    """The errors of settings that do not fit the job."""
    errors = []
    with Runtime.start("fp32", "cpu") as runtime:
        launched = dataclasses.replace(runtime, launched_for_fsdp=True)
        settings: list[tuple[Parallel, int | None, Runtime]] = [
            ("hsdp", 3, runtime),
            ("ddp", None, launched),
            ("fsdp", 2, runtime),
        ]
        for parallel, shard_size, where in settings:
            with pytest.raises(UserError) as refusal:
                ParallelStrategy.of(parallel, shard_size, where)
            errors.append(str(refusal.value))
        assert ParallelStrategy.of("auto", None, runtime).mesh is None
        sharded = ParallelStrategy.of("auto", None, launched).mesh
        assert sharded is not None
        assert sharded.size() == world
        whole_node = ParallelStrategy.of("hsdp", None, runtime).mesh
        assert whole_node is not None
        assert whole_node.shape == (1, world)
    return errors


def test_the_launcher_and_the_config_must_agree() -> None:
    for divided, launched, sized in run(2, refusals, 2):
        assert "train.shard_size to a divisor of 2" in divided
        assert "accelerate launch was started with FSDP, and train.parallel is ddp" in launched
        assert "train.shard_size is for train.parallel=hsdp" in sized


class Overflowing(Toy):
    """The loss of position 5, on rank 1 of two, is finite, and overflows when scaled."""

    def networks(self) -> dict[str, nn.Module]:
        return {"point": OneBlock()}

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        return Loss(loss.per_sample * torch.where(batch.positions == 5, 1e37, 1e-3))


def overflow() -> tuple[list[float], list[bool], bool]:
    """Sharded fp16; rank 1 overflows in the second of three steps. The scales, and whether the weights moved."""
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
    """The number of gradient reductions in the second step."""
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
