"""Run directories whose weights are random, off their start, and give outputs of a tame size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffpipe.config import dump_yaml
from diffpipe.experiment.run import build_stage
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.state import Shape
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from tests.support.randomized import randomized
from tests.support.run_states import run_state
from tests.support.stage_cases import CASES, SHAPE


def random_run(home: Path, case: str, *words: str) -> Path:
    """A run of step 1 of this case with `key=value` words. The scale of latents is other than the identity."""
    experiment = CASES[case].experiment(f"run.dir={home}", *words)
    with Runtime.start("fp32", "cpu") as runtime, torch.random.fork_rng():
        torch.manual_seed(1)
        experiment, stage, _ = build_stage(experiment, SHAPE, runtime, named={"stage.codec.run"})
        nets: Any = {name: randomized(net) for name, net in stage.networks().items()}
    if "denoiser" in nets:
        nets["denoiser"].out.weight.detach().mul_(0.2)  # so that float32 errors do not grow through a sampler's steps
    if "latent_scale" in nets:
        scale = nets["latent_scale"]
        scale.mean += torch.linspace(-0.5, 0.5, len(scale.mean))[:, None, None]
        scale.std *= torch.linspace(0.5, 1.5, len(scale.std))[:, None, None]
    tensors = {
        f"{prefix}.{name}.{key}": tensor
        for prefix in ("net", "ema")
        for name, net in nets.items()
        for key, tensor in net.state_dict().items()
    }
    config = CheckpointConfig.model_validate({"keep_last": 9, "async": False})
    with AsyncCheckpointer(home / "checkpoints", config, Communicator()) as checkpointer:
        shape, tree = Shape(**SHAPE._asdict()), experiment.model_dump(mode="json")
        checkpointer.save(tensors, run_state(1, shape=shape, experiment=tree))
    (home / "config.yaml").write_text(dump_yaml(experiment))
    return home
