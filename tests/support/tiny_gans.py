"""Tiny GANs, the batches they see and the trainer that trains them: what the tests of both GAN stages share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffpipe.interfaces import Batch, ImageShape
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square
from diffpipe.stages.gan import GANConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime

NETS = {"channels": 8, "channel_mult": (1, 2), "blocks": 1}
UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=square(8), classes=3)


def gan_config(**changes: object) -> GANConfig:
    return GANConfig.model_validate(
        {"kind": "gan", "generator": NETS | {"latent": 4}, "discriminator": NETS, "penalty_every": 2, **changes}
    )


def batch(start: int = 0, n: int = 8, resolution: int = 8) -> Batch:
    p = torch.arange(start, start + n)
    images = (torch.arange(resolution * resolution) * 7 + p[:, None] * 37) % 256
    images = images.to(torch.uint8).reshape(n, 1, resolution, resolution)
    return Batch(images, p % 3, p, [str(i) for i in p.tolist()])


def rows_of(whole: Batch, rows: slice) -> Batch:
    assert whole.labels is not None
    return Batch(whole.images[rows], whole.labels[rows], whole.positions[rows], whole.keys[rows])


def trainer(runtime: Runtime, stage: Any, batch_size: int = 8, seed: int = 3, **optimizer: Any) -> Trainer:
    settings = OptimizerConfig.model_validate({"lr": 1e-3, "warmup": 0, "betas": (0.0, 0.99), **optimizer})
    train = TrainConfig(steps=100, log_every=1)
    return Trainer(stage, runtime, train, settings, EMAConfig(), seed=seed, batch_size=batch_size)


def random_networks(stage: Any, dtype: torch.dtype = torch.float64) -> dict[str, nn.Module]:
    """A stage's networks with random weights, also where a new network has zeros, so that every path counts."""
    torch.manual_seed(0)
    nets = {name: net.to(dtype) for name, net in stage.networks().items()}
    for net in nets.values():
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return nets


def trained_unet() -> UNet:
    """A UNet with random weights in every layer, in the place of a trained one."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig.model_validate(UNET), 1, square(8), 3)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.2)
    return unet
