"""Lossless coding by a VAE: bits-back coding of its latents (Townsend et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.coding.grid import Grid
from diffpipe.coding.message import Message
from diffpipe.coding.pixels import LEVELS, PixelProbabilities, pop_pixels, push_pixels
from diffpipe.stages.likelihood import discretized_logistic

if TYPE_CHECKING:
    from diffpipe.stages.vae import VAE, Likelihood

_GRID = Grid(2.0**-8)  # of latents, whose prior's standard deviation is 1


class VAECoder:
    """An `ImageCoder`. An image takes -ELBO bits on average: log q(z|x) - log p(z) - log p(x|z) at a drawn z.

    The encoder draws z from q(z|x) with the message's bits, then pushes x under p(x|z) and z under the prior. The
    decoder pops z and x and gives back the bits that drew z, which it knows once it has x.
    """

    images_before = 2

    def __init__(self, stage: VAE, nets: Mapping[str, nn.Module]):
        self._stage, self._nets = stage, nets

    def encode(self, message: Message, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        k = _GRID.pop_sample(message, *self._posterior(images, labels))
        push_pixels(message, images.cpu().numpy().astype(np.int64).ravel(), self._pixels(k, images.device, labels))
        _GRID.push(message, k, np.zeros(k.shape), np.ones(k.shape))

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> UInt8[Tensor, "b c h w"]:
        shape, device = (n, *self._stage.latent_shape), next(self._nets["decoder"].parameters()).device
        k = _GRID.pop(message, np.zeros(shape), np.ones(shape))
        levels = pop_pixels(message, n * self._stage.dims, self._pixels(k, device, labels))
        images = torch.from_numpy(levels.astype(np.uint8)).reshape(n, *self._stage.shape.chw).to(device)
        _GRID.push_sample(message, k, *self._posterior(images, labels))
        return images

    def _posterior(self, images: Tensor, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of q(z|x), float64."""
        q = self._stage.encode(self._nets, images, labels)
        return q.mean.double().cpu().numpy(), torch.exp(0.5 * q.log_variance.double()).cpu().numpy()

    def _pixels(self, k: np.ndarray, device: torch.device, labels: Tensor | None) -> PixelProbabilities:
        """p(x|z) of each pixel."""
        z = torch.from_numpy(_GRID.values(k)).float().to(device)
        return logistic_levels(self._stage.decode(self._nets, z, labels))


def logistic_levels(p: Likelihood) -> PixelProbabilities:
    """The probabilities of all levels of pixels under discretized logistic distributions."""
    mean, log_scale = (rearrange(value.double(), "b c h w -> (b c h w) 1") for value in p)
    levels = torch.arange(LEVELS, device=mean.device)[None]
    return lambda part: discretized_logistic(levels, mean[part], log_scale[part]).exp().cpu().numpy()
