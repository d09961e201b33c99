"""Updates of whole matrices, on shards: EDM2's forced weight normalization, and Muon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.distributed.tensor import DTensor

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


def train(case: str, kind: str, lr: float, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The whole state after a few steps."""
    with Runtime.start("fp32", "cpu") as runtime:
        # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
        optimizer = OptimizerConfig.model_validate({"kind": kind, "lr": lr, "warmup": 0, "eps": 1e-3, "clip": 100.0})
        config = TrainConfig(steps=STEPS, log_every=1, **settings)
        stage = CASES[case].stage()
        trainer = Trainer(stage, runtime, config, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
        for step in range(STEPS):
            trainer.train_step([share(step, runtime)])
        state = trainer.state()
        if settings.get("parallel") == "fsdp":
            assert all(isinstance(t, DTensor) for key, t in state.items() if key.endswith("momentum_buffer"))
        return {key: full_tensor(tensor.detach()).clone().numpy() for key, tensor in state.items()}


PARALLEL = pytest.mark.parametrize(("world", "parallel"), [(2, "ddp"), (2, "fsdp"), (3, "fsdp")])


@PARALLEL
def test_edm2s_shards_have_the_weights_of_one_process_and_unit_magnitude(world: int, parallel: str) -> None:
    """The one output of the last layer is on the first process alone; three processes divide 8 and 16 unevenly."""
    one = train("ddpm, edm2", "adamw", 2e-2, {})
    for rank in run(world, train, "ddpm, edm2", "adamw", 2e-2, {"parallel": parallel}):
        assert rank.keys() == one.keys()
        for key, tensor in rank.items():
            np.testing.assert_allclose(tensor, one[key], atol=2e-4, err_msg=key)
            if key.startswith("net.denoiser.") and key.endswith("weight"):
                magnitudes = np.sqrt(np.square(tensor.reshape(len(tensor), -1)).mean(1))
                np.testing.assert_allclose(magnitudes, 1, atol=2e-4, err_msg=key)
    assert abs(one["net.denoiser.out_gain"]).item() > 0


@PARALLEL
def test_muon_moves_shards_as_it_moves_whole_matrices(world: int, parallel: str) -> None:
    """The gradients differ by the order of their sums, which may round to another bfloat16 in single elements.

    Newton-Schulz amplifies that. A shard that was orthogonalized alone would differ by as much as it moves: about
    0.2 lr in each step.
    """
    lr = 2e-3
    one = train("ddpm, dit, flow", "muon", lr, {})
    assert sum(key.endswith("momentum_buffer") for key in one) == 2 * 5  # of two blocks with five layers
    for rank in run(world, train, "ddpm, dit, flow", "muon", lr, {"parallel": parallel}):
        assert rank.keys() == one.keys()
        for key, tensor in rank.items():
            deviation = np.sqrt(np.square(tensor - one[key]).mean())
            assert deviation < 0.05 * (0.2 * lr * STEPS), key
