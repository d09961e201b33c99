"""Latent diffusion on two processes equals that on one: the codec's latents, the score of its reconstructions, and the
training of a VAE with a perceptual loss and a patch discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffpipe import plugins
from diffpipe.evaluation.reconstruction import ReconstructedImages
from diffpipe.evaluation.scores import score
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPM
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.latents import LatentCodec
from diffpipe.stages.vae import VAEConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.toy_stages import batch

BATCH, STEPS = 12, 3
SHAPE = ImageShape(1, square(4))
VAE = {"kind": "vae", "network": {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 2}}
UNET = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
LATENT_DDPM = {"kind": "ddpm", "network": UNET, "codec": {"kind": "vae", "run": "x"}, "sampler": {"clip": False}}
RIGHT = {"perceptual": {}, "patch": {"start": 1, "network": {"channels": 8, "channel_mult": (1, 2)}}}
METRIC = "fd_pixels"


def pixels(images: Tensor) -> Tensor:
    """A feature network that is cheap."""
    return F.adaptive_avg_pool2d(images[:, 0].float(), 4).flatten(1)


class Patterns:
    """Two chunks of images that depend on their index."""

    n = 70

    def describe(self) -> dict[str, Any]:
        return {}

    def images(self, indices: range) -> Tensor:
        return batch(indices).images


def features(images: Tensor) -> list[Tensor]:
    return [F.avg_pool2d(images, 2) + 1.5]


def train_autoencoder(runtime: Runtime) -> dict[str, Any]:
    """Every tensor of the training state after some steps without the discriminator and some with it."""
    stage = VAEConfig.model_validate(VAE | RIGHT).build(SHAPE, {"features": features})
    # Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
    optimizer = OptimizerConfig(lr=0.01, warmup=0, eps=1e-3, clip=100.0)
    trainer = Trainer(stage, runtime, TrainConfig(steps=STEPS), optimizer, EMAConfig(), seed=5, batch_size=BATCH)
    for step in range(STEPS):
        trainer.train_step([batch(range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world))])
    return {key: tensor.numpy() for key, tensor in trainer.state().items()}


def train() -> tuple[dict[tuple[int, int], Any], list[float], dict[str, Any], float]:
    """The network's inputs by step and position, the losses, the weights, and the codec's score."""
    with Runtime.start("fp32", "cpu") as runtime:
        vae = VAEConfig.model_validate(VAE).build(SHAPE)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nets = vae.networks()
        codec = LatentCodec(vae, nets, None)
        stage = DDPM(DDPMConfig.model_validate(LATENT_DDPM), SHAPE, codec)
        settings = TrainConfig(steps=STEPS, log_every=1)
        optimizer = OptimizerConfig(lr=0.01, warmup=0)

        def start(nets: Mapping[str, nn.Module]) -> None:
            stage.start(nets, batch(range(50)), KeyedRNG(5, torch.arange(50)))

        trainer = Trainer(stage, runtime, settings, optimizer, EMAConfig(), seed=5, batch_size=BATCH, start=start)
        shown: dict[tuple[int, int], Any] = {}
        positions: list[int] = []

        def spy(module: Any, args: tuple[Any, ...]) -> None:
            for position, x_t, t in zip(positions, args[0], args[1], strict=True):
                shown[trainer.step, position] = (x_t.numpy().copy(), int(t))

        trainer.nets["denoiser"].register_forward_pre_hook(spy)
        losses = []
        for step in range(STEPS):
            positions[:] = range(step * BATCH + runtime.rank, (step + 1) * BATCH, runtime.world)
            trainer.train_step([batch(positions)])
            losses.append(trainer.log_values()["loss"])
        reconstructed = ReconstructedImages(vae, nets, Patterns(), runtime, 0, {})
        with patch.dict(plugins._parts["feature_networks"], {"pixels": pixels}):
            lost = score(reconstructed, Patterns(), None, [METRIC], runtime).scores[METRIC]
        state = {key: tensor.numpy() for key, tensor in trainer.state().items()}
        return shown, losses, state | train_autoencoder(runtime), lost


def test_two_processes_see_score_and_train_as_one() -> None:
    shown, losses, state, lost = train()
    (first, first_losses, weights, *first_score), (second, _, second_weights, *second_score) = run(2, train)
    assert lost > 1
    assert [*first_score, *second_score] == pytest.approx([lost, lost], rel=1e-9)
    assert not first.keys() & second.keys()
    assert (first | second).keys() == shown.keys()
    for at, (x_t, t) in (first | second).items():
        assert t == shown[at][1]
        assert x_t == pytest.approx(shown[at][0], abs=1e-5)
    assert first_losses == pytest.approx(losses, rel=1e-4)
    assert weights.keys() == second_weights.keys() == state.keys()
    nets = {name.split(".")[1] for name in state if name.startswith("net.")}
    assert nets == {"denoiser", "latent_scale", "encoder", "decoder", "discriminator"}
    for key, tensor in weights.items():
        assert tensor.tobytes() == second_weights[key].tobytes(), key
        assert tensor == pytest.approx(state[key], abs=2e-4), key
