"""Two networks, three phases and a gradient of a gradient under DDP: the same steps as in one process."""

from __future__ import annotations

from typing import Any

import pytest

from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.stages.adversarial import AdversarialConfig
from diffpipe.stages.gan import GANConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.toy_stages import batch

BATCH, STEPS = 12, 3
NET = {"channels": 8, "channel_mult": (1, 2), "groups": 2}  # of a group of a few numbers the norm amplifies rounding
RULES = {"conditional": True, "r1": 0.5, "r2": 0.2}
GAN = {"kind": "gan", "generator": NET | {"latent": 4}, "discriminator": NET, **RULES}
UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (2,), "groups": 4, "dropout": 0.0}
STAGES = {
    "lazy": GANConfig.model_validate(GAN | {"penalty_every": 2}),
    "every step": GANConfig.model_validate(GAN),
    "diffusion": AdversarialConfig.model_validate(
        {"kind": "adversarial", "network": UNET, "latent": 4, "penalty_every": 2, **RULES}
    ),
}


def share(step: int, runtime: Runtime) -> list[Batch]:
    """This rank's positions of the step, in two uneven micro-batches."""
    positions = range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)
    parts = [batch(positions[:2]), batch(positions[2:])]
    return [part._replace(labels=part.positions % 3) for part in parts]


def train() -> dict[str, tuple[list[float], dict[str, Any]]]:
    """A few steps of each stage: the losses, and every tensor of the training state."""
    results = {}
    with Runtime.start("fp32", "cpu") as runtime:
        for name, config in STAGES.items():
            stage = config.build(ImageShape(1, square(4), 3))
            # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
            optimizer = OptimizerConfig(lr=5e-3, warmup=0, betas=(0.0, 0.99), eps=1e-3, clip=100.0)
            settings = TrainConfig(steps=STEPS, accumulate=2, log_every=1)
            trainer = Trainer(stage, runtime, settings, optimizer, EMAConfig(), seed=5, batch_size=BATCH)
            losses = []
            for step in range(STEPS):
                trainer.train_step(share(step, runtime))
                losses.append(trainer.log_values()["loss"])
            results[name] = losses, {key: tensor.numpy() for key, tensor in trainer.state().items()}
    return results


def test_two_processes_train_as_one_and_hold_the_same_weights() -> None:
    single = train()
    first, second = run(2, train)
    for name, (losses, state) in single.items():
        assert first[name][0] == pytest.approx(losses, rel=1e-4)
        assert {key.split(".")[1] for key in state if key.startswith("net.")} == {"generator", "discriminator"}
        for key, tensor in state.items():
            assert first[name][1][key].tobytes() == second[name][1][key].tobytes(), (name, key)
            assert first[name][1][key] == pytest.approx(tensor, abs=1e-4), (name, key)
