"""`start`: fresh networks set from data once, with the same bits on all ranks; a resumed run keeps what it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Loss, Phase
from diffpipe.rng import KeyedRNG
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.initialization import StartFunction
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.parallel import full_tensor
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.run_states import run_state
from tests.support.toy_stages import OneBlock, Toy, batch

BATCH = 12


class Scale(nn.Module):
    """Buffers alone: nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("weights", torch.zeros(1, 2, 3, 3).to(memory_format=torch.channels_last))


class Scaled(Toy):
    """The toy with its pixels divided by their standard deviation, which `start` measures."""

    def networks(self) -> dict[str, nn.Module]:
        return {"point": OneBlock(), "scale": Scale()}

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        loss = super().loss(phase, nets, batch, rng)
        return Loss(loss.per_sample / nets["scale"].get_buffer("std"), loss.metrics)


def start(rank: int) -> StartFunction:
    """Sets buffers and parameters. The ranks disagree in the last bits, as different processors might."""

    def set_from_data(nets: Mapping[str, nn.Module]) -> None:
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        pixels = batch(range(20)).images.float()
        scale = nets["scale"]
        scale.get_buffer("std").copy_(pixels.std() * (1 + 1e-6 * rank))
        scale.get_buffer("samples").add_(20)
        scale.get_buffer("started").fill_(True)
        scale.get_buffer("weights").copy_(torch.randn(1, 2, 3, 3))
        nets["point"].get_parameter("linear.bias").fill_(pixels.mean() * (1 + 1e-6 * rank))

    return set_from_data


def build(runtime: Runtime, start: StartFunction | None, **config: Any) -> Trainer:
    train = TrainConfig.model_validate({"steps": 9, "log_every": 1, **config})
    optimizer = OptimizerConfig(lr=0.01, warmup=0)
    return Trainer(Scaled(), runtime, train, optimizer, EMAConfig(), seed=5, batch_size=BATCH, start=start)


def arrays(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in trainer.state().items()}


def started_then_resumed(folder: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The state after `start`, after two steps, and of a run that resumes from these."""
    with Runtime.start("fp32", "cpu") as runtime:
        trainer = build(runtime, start(runtime.rank))
        assert not isinstance(trainer.wrapped["scale"], DistributedDataParallel)
        assert isinstance(trainer.wrapped["point"], DistributedDataParallel) == (runtime.world > 1)
        started = arrays(trainer)
        for step in range(2):
            trainer.train_step([batch(range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world))])
        with AsyncCheckpointer(Path(folder), CheckpointConfig(), runtime.comm.new_group()) as checkpointer:
            checkpointer.save(trainer.state(), run_state(trainer.step))
        resumed = build(runtime, None)
        newest, _ = checkpoints.newest_valid(Path(folder), runtime.comm)
        assert newest is not None
        checkpoints.load(newest, resumed.state(), runtime.comm)
        return started, arrays(trainer), arrays(resumed)


def test_any_number_of_processes_starts_with_the_same_bits_and_a_resumed_run_does_not_start_again(
    tmp_path: Path,
) -> None:
    single, _, _ = started_then_resumed(str(tmp_path / "1"))
    assert single["net.scale.samples"] == 20
    assert single["net.scale.started"]
    assert single["net.point.linear.bias"] > 1
    for world in (2, 3):
        for started, trained, resumed in run(world, started_then_resumed, str(tmp_path / str(world))):
            for name, value in single.items():
                assert started[name].tobytes() == value.tobytes(), (world, name)
            for name, value in trained.items():
                assert resumed[name].tobytes() == value.tobytes(), (world, name)


def test_the_averages_begin_with_the_started_weights_and_buffers_are_not_trained(tmp_path: Path) -> None:
    started, trained, _ = started_then_resumed(str(tmp_path))
    for name, value in started.items():
        part, _, rest = name.partition(".")
        if part == "net":
            assert started[f"ema.{rest}"].tobytes() == value.tobytes(), name
    for name in ("std", "samples", "started", "weights"):
        for part in ("net", "ema"):
            assert trained[f"{part}.scale.{name}"].tobytes() == started[f"net.scale.{name}"].tobytes()
    assert not any(name.startswith("optimizer.") and "scale" in name for name in started)


def sharded() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The full state after `start` with FSDP, and the averaged networks after two steps."""
    with Runtime.start("fp32", "cpu") as runtime:
        trainer = build(runtime, start(runtime.rank), parallel="fsdp")
        started = {name: full_tensor(tensor).numpy().copy() for name, tensor in trainer.state().items()}
        for step in range(2):
            trainer.train_step([batch(range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world))])
        networks = trainer.ema_networks()
        averages = {f"{key}.{name}": t.numpy() for key, net in networks.items() for name, t in net.state_dict().items()}
        return started, averages


def test_a_sharded_run_starts_with_the_same_bits_and_buffers_alone_are_not_sharded(tmp_path: Path) -> None:
    single, _, _ = started_then_resumed(str(tmp_path))
    for started, averages in run(2, sharded):
        for name, value in single.items():
            assert started[name].tobytes() == value.tobytes(), name
        assert averages["scale.std"].tobytes() == single["net.scale.std"].tobytes()
        assert averages["point.linear.weight"] != single["net.point.linear.weight"]


def fails_on_rank_one() -> str:
    with Runtime.start("fp32", "cpu") as runtime:

        def unreadable(nets: Mapping[str, nn.Module]) -> None:
            if runtime.rank == 1:
                raise UserError("shard 3 cannot be read")

        with pytest.raises(UserError) as refusal:
            build(runtime, unreadable)
        return str(refusal.value)


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    assert run(2, fails_on_rank_one) == ["shard 3 cannot be read"] * 2
