"""Sharded networks in bf16: they compute as whole ones under autocast do, and keep float32 where it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffpipe.interfaces import Batch, Stage
from diffpipe.train.blocks import blocks
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Precision, Runtime
from tests.support.gloo_processes import run
from tests.support.stage_cases import CASES, SHAPE, real_batch

STEPS, BATCH = 3, 12
# Without penalties, discriminators are in bf16, too.
NAMES = [*CASES, "gan, unpenalized", "adversarial, unpenalized"]


class Result(NamedTuple):
    """The losses of a few steps, the types of the blocks' outputs by block, and those of the state."""

    losses: list[float]
    outputs: dict[str, set[str]]
    state: set[str]


def build(name: str) -> Stage:
    if name in CASES:
        return CASES[name].stage()
    case = CASES[name.partition(",")[0]]
    return case.experiment("stage.r1=0", "stage.r2=0").stage.build(SHAPE, {})


def share(step: int, runtime: Runtime) -> Batch:
    full = real_batch(BATCH * STEPS)
    positions = [*range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)]
    assert full.labels is not None
    keys = [full.keys[i] for i in positions]
    return Batch(full.images[positions], full.labels[positions], full.positions[positions], keys)


def note_types(types: set[str]) -> Any:
    """A forward hook that notes the types of a module's outputs."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        types.update(str(leaf.dtype) for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    return hook


def train(parallel: str, precision: Precision, names: Sequence[str]) -> dict[str, Result]:
    results = {}
    with Runtime.start(precision, "cpu") as runtime:
        for name in names:
            optimizer = OptimizerConfig(lr=1e-3, warmup=0, betas=(0.0, 0.99), eps=1e-3, clip=100.0)
            config = TrainConfig.model_validate({"steps": STEPS, "log_every": 1, "parallel": parallel})
            trainer = Trainer(build(name), runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
            outputs: dict[str, set[str]] = {}
            for key, net in trainer.nets.items():
                for i, block in enumerate(blocks(net)):
                    block.register_forward_hook(note_types(outputs.setdefault(f"{key} {i}", set())))
            losses = []
            for step in range(STEPS):
                trainer.train_step([share(step, runtime)])
                losses.append(trainer.log_values()["loss"])
            results[name] = Result(losses, outputs, {str(value.dtype) for value in trainer.state().values()})
    return results


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_blocks_compute_and_losses_are_as_in_whole_networks(precision: Precision) -> None:
    names = NAMES if precision == "bf16" else ["ddpm", "tarflow"]
    whole, sharded = (run(2, train, parallel, precision, names)[0] for parallel in ("ddp", "fsdp"))
    for name in names:
        assert sharded[name].outputs == whole[name].outputs, name
        assert sharded[name].state == whole[name].state, name
        assert sharded[name].losses == pytest.approx(whole[name].losses, rel=5e-3), name
