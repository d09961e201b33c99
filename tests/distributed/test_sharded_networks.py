"""Networks that are made where they are sharded: the bits of whole ones, and never whole on more than one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from torch import nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Starts
from diffpipe.rng import KeyedRNG
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.parallel import full_tensor
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.stage_cases import CASES, real_batch
from tests.support.toy_stages import OneBlock, Toy


def initial(settings: dict[str, Any], names: Sequence[str] = tuple(CASES)) -> dict[str, dict[str, bytes]]:
    """The bytes of every tensor of the cases' initial states, set from data where the stage has a start."""
    states = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name in names:
            stage = CASES[name].stage()

            def start(nets: Mapping[str, nn.Module], stage: Any = stage) -> None:
                batch = runtime.to_device(real_batch(stage.start_samples))
                stage.start(nets, batch, KeyedRNG(5, batch.positions))

            starts = isinstance(stage, Starts) and stage.start_samples > 0
            config = TrainConfig.model_validate({"steps": 1, **settings})
            trainer = Trainer(
                stage,
                runtime,
                config,
                OptimizerConfig(),
                EMAConfig(),
                seed=5,
                batch_size=4,
                start=start if starts else None,
            )
            tensors = {key: full_tensor(tensor) for key, tensor in trainer.state().items()}
            tensors |= {
                f"whole.{n}.{k}": t for n, net in trainer.ema_networks().items() for k, t in net.state_dict().items()
            }
            states[name] = {key: tensor.contiguous().numpy().tobytes() for key, tensor in tensors.items()}
            assert not any(t.is_meta for net in trainer.ema_networks().values() for t in net.buffers())
    return states


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, bytes]]:
    return initial({})


@pytest.mark.parametrize(
    ("world", "settings", "names"),
    [
        (2, {"parallel": "fsdp"}, list(CASES)),
        (3, {"parallel": "fsdp"}, ["flow", "gan"]),
        (4, {"parallel": "hsdp", "shard_size": 2}, ["flow", "gan"]),
    ],
)
def test_the_initial_bits_are_those_of_one_process(
    one: dict[str, dict[str, bytes]], world: int, settings: dict[str, Any], names: list[str]
) -> None:
    for rank in run(world, initial, settings, names):
        for name in names:
            assert rank[name] == one[name], name


class Failing(Toy):
    def networks(self) -> dict[str, nn.Module]:
        return {"point": OneBlock()}


def failed_start() -> str:
    def start(nets: Mapping[str, nn.Module]) -> None:
        raise UserError("the first samples are all bad")

    with Runtime.start("fp32", "cpu") as runtime:
        config = TrainConfig(steps=1, parallel="fsdp")
        with pytest.raises(UserError) as failure:
            Trainer(Failing(), runtime, config, OptimizerConfig(), EMAConfig(), seed=0, batch_size=4, start=start)
        return str(failure.value)


def test_a_start_that_fails_on_rank_0_fails_on_all() -> None:
    assert run(2, failed_start) == ["the first samples are all bad"] * 2
