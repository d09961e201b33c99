"""EDM2's forced weight normalization on shards: the weights of one process, each output of unit magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffpipe.interfaces import Batch
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.parallel import full_tensor
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.stage_cases import CASES, real_batch

BATCH, STEPS = 12, 4


def share(step: int, runtime: Runtime) -> Batch:
    full, positions = (
        real_batch(BATCH * STEPS),
        [*range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)],
    )
    assert full.labels is not None
    keys = [full.keys[i] for i in positions]
    return Batch(full.images[positions], full.labels[positions], full.positions[positions], keys)


def weights(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The denoiser's parameters after a few steps, whole."""
    with Runtime.start("fp32", "cpu") as runtime:
        # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
        optimizer = OptimizerConfig(lr=2e-2, warmup=0, eps=1e-3, clip=100.0)
        config = TrainConfig(steps=STEPS, log_every=1, **settings)
        stage = CASES["ddpm, edm2"].stage()
        trainer = Trainer(stage, runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
        for step in range(STEPS):
            trainer.train_step([share(step, runtime)])
        return {
            name: full_tensor(p.detach()).clone().numpy() for name, p in trainer.nets["denoiser"].named_parameters()
        }


@pytest.mark.parametrize(("world", "parallel"), [(2, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_shards_have_the_weights_of_one_process_and_unit_magnitude(world: int, parallel: str) -> None:
    """The one output of the last layer is on the first process alone; three processes divide 8 and 16 unevenly."""
    one = weights({})
    for rank in run(world, weights, {"parallel": parallel}):
        assert rank.keys() == one.keys()
        for name, weight in rank.items():
            np.testing.assert_allclose(weight, one[name], atol=2e-4, err_msg=name)
            if name.endswith("weight"):
                magnitudes = np.sqrt(np.square(weight.reshape(len(weight), -1)).mean(1))
                np.testing.assert_allclose(magnitudes, 1, atol=2e-4, err_msg=name)
    assert torch.tensor(one["out_gain"]).abs() > 0
