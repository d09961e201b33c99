"""What a VAE's checkpoint says of its latents, so that a diffusion model can take it as its codec."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import BadSampleError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.stages.latents import codec_problem, moments, statistics
from diffpipe.stages.vae import VAE
from diffpipe.train.checkpoint.state import LatentStatistics
from diffpipe.train.runtime import Runtime

IMAGES = 2000  # enough for three digits of the mean and the deviation of each channel


def measure_latents(
    stage: Stage,
    ema_networks: Callable[[], Mapping[str, nn.Module]],
    shards: ShardSet,
    shape: ImageShape,
    runtime: Runtime,
    *,
    some_bad: bool = False,
) -> LatentStatistics | None:
    """Mean and deviation of each latent channel, always over the same images; None of a stage that is no codec.

    averaged: gives the networks where they are needed. some_bad: leave out the images that cannot be read or decoded.
    No latent is drawn: their variance is that of the posterior means and the posterior's own. A collective.
    """
    if not isinstance(stage, VAE) or codec_problem(stage):
        return None
    images = ShardImages(shards, shape.channels, shape.resolution, n=min(IMAGES, shards.total))

    nets = ema_networks()

    def each(chunk: range) -> tuple[int, Tensor] | None:
        there = [*_there(images, chunk)] if some_bad else [images.images(chunk)]
        if not there:
            return None
        some = torch.cat(there).to(runtime.device, memory_format=runtime.memory_format)
        return len(some), moments(stage.encode(nets, some)).cpu()

    counts, sums = zip(*filter(None, map_over_ranks(images.n, each, runtime)), strict=True)
    mean, std = statistics(torch.stack(sums).sum(0))
    return LatentStatistics(mean=mean, std=std, images=sum(counts))


def _there(images: ShardImages, chunk: range) -> Iterator[Tensor]:
    for i in chunk:
        with contextlib.suppress(BadSampleError):
            yield images.images(range(i, i + 1))
