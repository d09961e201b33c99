"""The same steps at any world size: equal samples, timesteps, noise and label drops; weights up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.run_states import run_state
from tests.support.toy_stages import batch

BATCH = 12
STAGE = {
    "kind": "ddpm",
    "network": {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (2,), "groups": 4, "dropout": 0.0},
    "conditional": True,
    "label_dropout": 0.4,
}


def share(step: int, runtime: Runtime) -> Batch:
    positions = range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)
    local = batch(positions)
    return local._replace(labels=local.positions % 3)


def build(runtime: Runtime) -> Trainer:
    stage = DDPMConfig.model_validate(STAGE).build(ImageShape(1, square(4), 3))
    train = TrainConfig(steps=9, log_every=1)
    return Trainer(stage, runtime, train, OptimizerConfig(lr=0.01), EMAConfig(), seed=5, batch_size=BATCH)


def train(directory: str, start: int, stop: int) -> dict[str, Any]:
    """Train steps start … stop − 1 from the checkpoint at `start`, and save. Returns what the network was shown."""
    from pathlib import Path

    with Runtime.start("fp32", "cpu") as runtime:
        trainer = build(runtime)
        if start:
            newest, _ = checkpoints.newest_valid(Path(directory), runtime.comm)
            assert newest is not None
            assert newest.step == start
            checkpoints.load(newest, trainer.state(), runtime.comm)
            trainer.step = start
        shown: dict[tuple[int, int], list[bytes]] = {}
        positions: list[int] = []

        def spy(module: Any, args: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
            for position, *rows in zip(positions, *args, strict=True):
                shown[trainer.step, position] = [row.numpy().tobytes() for row in rows]

        trainer.nets["denoiser"].register_forward_pre_hook(spy)
        losses = []
        for step in range(start, stop):
            micro = share(step, runtime)
            positions[:] = micro.positions.tolist()
            trainer.train_step([micro])
            losses.append(trainer.log_values()["loss"])
        with AsyncCheckpointer(
            Path(directory), CheckpointConfig(keep_last=9), runtime.comm.new_group()
        ) as checkpointer:
            checkpointer.save(trainer.state(), run_state(trainer.step))
        return {"shown": shown, "losses": losses, "state": {k: v.numpy() for k, v in trainer.state().items()}}


def merged(parts: list[dict[str, Any]]) -> dict[tuple[int, int], list[bytes]]:
    """The inputs of the networks on all ranks. No position may come twice in a step."""
    assert sum(len(part["shown"]) for part in parts) == len({key for part in parts for key in part["shown"]})
    return {key: value for part in parts for key, value in part["shown"].items()}


def test_two_one_and_three_processes_see_the_samples_of_an_uninterrupted_run(tmp_path: Any) -> None:
    uninterrupted = run(2, train, str(tmp_path / "uninterrupted"), 0, 6)
    pieces = [run(world, train, str(tmp_path / "pieces"), at, at + 2) for world, at in ((2, 0), (1, 2), (3, 4))]
    # Each entry holds x_t (so the pixels and the noise), t and the label that the network saw.
    shown: dict[tuple[int, int], list[bytes]] = {}
    for piece in pieces:
        shown |= merged(piece)
    assert shown == merged(uninterrupted)
    assert len(shown) == 6 * BATCH
    losses = [loss for piece in pieces for loss in piece[0]["losses"]]
    assert losses == pytest.approx(uninterrupted[0]["losses"], abs=1e-4)
    for name, tensor in uninterrupted[0]["state"].items():
        assert pieces[-1][0]["state"][name] == pytest.approx(tensor, abs=2e-4), name


def test_ranks_hold_the_same_weights_and_a_resume_at_the_same_world_size_is_bit_identical(tmp_path: Any) -> None:
    uninterrupted = run(2, train, str(tmp_path / "uninterrupted"), 0, 4)
    run(2, train, str(tmp_path / "pieces"), 0, 2)
    resumed = run(2, train, str(tmp_path / "pieces"), 2, 4)
    for part in (*uninterrupted, *resumed):
        for name, tensor in uninterrupted[0]["state"].items():
            assert part["state"][name].tobytes() == tensor.tobytes(), name
    assert any(name.startswith("ema.") for name in uninterrupted[0]["state"])
    assert any(name.startswith("optimizer.") for name in uninterrupted[0]["state"])


def fail_on_rank_one() -> str:
    with Runtime.start("fp32", "cpu") as runtime:

        def action() -> None:
            if runtime.rank == 1:
                raise UserError("rank 1 has no shards")

        try:
            runtime.comm.raise_on_all_ranks(action)
        except UserError as error:
            return str(error)
        return "nothing"


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    assert run(2, fail_on_rank_one) == ["rank 1 has no shards"] * 2


def nan_on_rank_one() -> tuple[list[bool], str]:
    """A NaN on one rank: whether each tensor stayed as it was, and the error."""
    with Runtime.start("fp32", "cpu") as runtime:
        trainer = build(runtime)
        trainer.train_step([share(0, runtime)])
        before = {name: t.clone() for name, t in trainer.state().items() if not name.startswith("ema.")}
        if runtime.rank == 1:
            inner = trainer.stage.loss

            def loss(*args: Any) -> Any:
                result = inner(*args)
                return type(result)(result.per_sample * torch.tensor([1.0, torch.nan, 1, 1, 1, 1]))

            trainer.stage.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
        trainer.train_step([share(1, runtime)])
        same = [torch.equal(trainer.state()[name], t) for name, t in before.items()]
        try:
            trainer.log_values()
        except UserError as error:
            return same, str(error)
        return same, "nothing"


def test_a_nan_on_one_rank_changes_no_weight_and_all_ranks_name_the_sample() -> None:
    for same, error in run(2, nan_on_rank_one):
        assert all(same)
        # Rank 1 has positions 13, 15, 17, …: its second is 15.
        assert "step 1, rank 1: the loss of key15 is not finite" in error
