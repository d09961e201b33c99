"""Power-function averages and their snapshots on several processes, sharded and resumed at other world sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffpipe.experiment import snapshots
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.checkpoint_tensors import consolidated
from tests.support.gloo_processes import run
from tests.support.run_states import run_state
from tests.support.stage_cases import CASES
from tests.support.toy_stages import batch

BATCH, MICRO = 8, 2


def train(home: str, stop: int, parallel: Any) -> None:
    """Train up to step `stop` with two micro-batches a step: a snapshot every step, and a checkpoint at the end."""
    case = CASES["ddpm"]
    experiment = case.experiment(f"run.dir={home}", "ema={kind: power, snapshot_every: 1}")
    with Runtime.start("fp32", "cpu") as runtime:
        config, folder = TrainConfig(steps=9, accumulate=MICRO, parallel=parallel), experiment.run.checkpoints
        optimizer = OptimizerConfig(lr=0.01, warmup=0, eps=1e-3)
        trainer = Trainer(case.stage(), runtime, config, optimizer, experiment.ema, seed=5, batch_size=BATCH)
        newest, _ = checkpoints.newest_valid(folder, runtime.comm)
        if newest is not None:
            checkpoints.load(newest, trainer.state(), runtime.comm)
            trainer.step = newest.step
        with AsyncCheckpointer(folder, CheckpointConfig(keep_last=9), runtime.comm.new_group()) as checkpointer:
            while trainer.step < stop:
                first = trainer.step * BATCH + runtime.rank
                local = [
                    range(first + i * runtime.world, (trainer.step + 1) * BATCH, MICRO * runtime.world) for i in (0, 1)
                ]
                trainer.train_step([labelled(positions) for positions in local])
                due = snapshots.due(experiment, trainer.step)
                last = [checkpointer.checkpoints] if trainer.step == stop else []
                checkpointer.save(trainer.state(), run_state(trainer.step), [*due, *last])


def labelled(positions: range) -> Any:
    local = batch(positions)
    return local._replace(labels=local.positions % 3)


def stored(home: Path) -> dict[str, np.ndarray]:
    """Every tensor of every snapshot."""
    folders = sorted((home / "ema").glob("step-*"))
    return {f"{folder.name}.{name}": value for folder in folders for name, value in consolidated(folder).items()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_snapshots_are_those_of_an_uninterrupted_run_at_any_world_size(tmp_path: Path, parallel: str) -> None:
    run(2, train, str(tmp_path / "straight"), 4, parallel)
    for stop in (2, 4):
        run(2, train, str(tmp_path / "resumed"), stop, parallel)
    for world, stop in ((2, 2), (1, 4)):
        run(world, train, str(tmp_path / "elastic"), stop, parallel)
    straight, resumed, elastic = (stored(tmp_path / name) for name in ("straight", "resumed", "elastic"))
    assert straight.keys() == resumed.keys() == elastic.keys()
    assert {name.split(".")[1] for name in straight} == {"ema", "ema_1"}
    assert len({name.split(".")[0] for name in straight}) == 4
    for name, tensor in straight.items():
        assert resumed[name].tobytes() == tensor.tobytes(), name
        np.testing.assert_allclose(elastic[name], tensor, atol=2e-4, err_msg=name)
    assert any(
        not np.array_equal(straight[f"step-00000004.ema.{n}"], straight[f"step-00000004.ema_1.{n}"])
        for n in (name.split(".", 2)[2] for name in straight if ".ema." in name)
    )
