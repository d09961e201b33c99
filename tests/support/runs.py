"""Opened runs of toy stages, whose images and scores are known, saved runs of a tiny diffusion, and indexed shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffpipe.config import dump_yaml
from diffpipe.data.index.write_index import write_index
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import Run
from diffpipe.interfaces import Batch, ImageShape, Score, Stage
from diffpipe.resolution import square
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.state import Shape
from diffpipe.train.distributed import Communicator
from tests.support.commands import SHARDS, TINY
from tests.support.run_states import run_state
from tests.support.stage_cases import CASES
from tests.support.tars import write_shards
from tests.support.toy_stages import Toy

TINY_WORDS = [*TINY, "data.resolution=8", "data.workers=0", "train.precision=fp32", f"data.train={SHARDS / 'test'}"]
TINY_WORDS += ["data.test=null", "sample.every=0", "checkpoint.async=false"]


class Coder(Toy):
    """Reconstructs an image as its negative, and scores it by its mean pixel."""

    def __init__(self, kind: Literal["exact", "bound", "estimate", "error"] = "exact"):
        self.kind: Literal["exact", "bound", "estimate", "error"] = kind

    def reconstruct(self, nets: Mapping[str, nn.Module], images: Tensor, rng: KeyedRNG) -> Tensor:
        return 255 - images

    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        mean = batch.images.float().mean((1, 2, 3))
        return Score(mean, "mse" if self.kind == "error" else "bits/dim", self.kind, {"half": mean / 2})


class Noise(Coder):
    """Also generates: uniform pixels by index, all of them the label's number where there are labels."""

    generating = ("point",)

    def evaluations(self) -> int | None:
        return 3

    def generate(self, nets: Mapping[str, nn.Module], rng: RNG, labels: Tensor | None) -> Tensor:
        if labels is not None:
            return labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
        return (256 * rng.uniform("pixels", (1, 8, 8))).to(torch.uint8)


def opened_run(stage: Stage, home: Path, *words: str, case: str = "ddpm", classes: int = 3, step: int = 10) -> Run:
    """A run of this stage at `home`, without files. case, words: the config that it has. Images are of 1×8×8."""
    experiment = CASES[case].experiment(f"run.dir={home}", *words)
    checkpoint = Checkpoint(home / "checkpoints" / f"step-{step:08d}", run_state(step), "0" * 64)
    return Run(checkpoint, experiment, ImageShape(1, square(8), classes), stage, stage.networks(), "ema")


def saved_run(home: Path, *words: str, steps: tuple[int, ...] = (1,), **state: Any) -> Experiment:
    """A run directory of the tiny DDPM: at step k each trained weight is k, and each averaged one k + 1/2."""
    experiment = CASES["ddpm"].experiment(f"run.dir={home}", *words)
    nets = experiment.stage.build(ImageShape(1, square(8), 10), {}).networks()
    config = CheckpointConfig.model_validate({"keep_last": 9, "async": False})
    with AsyncCheckpointer(home / "checkpoints", config, Communicator()) as checkpointer:
        for step in steps:
            tensors = {
                f"{prefix}.{name}.{key}": torch.full_like(tensor, value)
                for prefix, value in (("net", step), ("ema", step + 0.5))
                for name, net in nets.items()
                for key, tensor in net.state_dict().items()
            }
            shape, tree = Shape(channels=1, resolution=square(8), classes=10), experiment.model_dump(mode="json")
            checkpointer.save(tensors, run_state(step, shape=shape, experiment=tree, **state))
    (home / "config.yaml").write_text(dump_yaml(experiment))
    return experiment


def indexed_shards(folder: Path, *counts: int) -> str:
    """Indexed shards of random grey images of 8×8 with labels 0, 1, 2, 0, …; the pattern to load them by."""
    write_shards(folder, list(counts))
    write_index(folder)
    return str(folder)
