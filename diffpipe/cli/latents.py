"""What a VAE's checkpoint says of its latents, so that a diffusion model can take it as its codec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffpipe.cli.images import ShardImages
from diffpipe.contract import ImageShape, Stage
from diffpipe.data.index import ShardSet
from diffpipe.metrics.evaluate import CHUNK
from diffpipe.stages.latents import moments, statistics, unfit
from diffpipe.stages.vae import VAE
from diffpipe.train.runtime import Runtime

IMAGES = 2000  # enough for three digits of the mean and the deviation of each channel


def measured(
    stage: Stage, nets: Mapping[str, nn.Module], shards: ShardSet, shape: ImageShape, runtime: Runtime
) -> dict[str, Any] | None:
    """Mean and deviation of each latent channel, always over the same images; None of a stage that is no codec.

    No latent is drawn: their variance is that of the posterior means and the posterior's own. A collective.
    """
    if not isinstance(stage, VAE) or unfit(stage):
        return None
    images = ShardImages(shards, shape.channels, shape.resolution, n=min(IMAGES, shards.total))

    def mine() -> Tensor:
        sums = torch.zeros(3, stage.latent_shape[0], dtype=torch.float64, device=runtime.device)
        for start in range(runtime.rank * CHUNK, images.n, runtime.world * CHUNK):
            some = images.images(range(start, min(start + CHUNK, images.n)))
            with torch.no_grad(), runtime.autocast():
                sums += moments(stage.encode(nets, some.to(runtime.device, memory_format=runtime.memory_format)))
        return sums

    mean, std = statistics(runtime.sum(runtime.together(mine)))
    return {"mean": mean, "std": std, "images": images.n}
