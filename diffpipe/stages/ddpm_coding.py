"""Lossless coding by a diffusion: bits-back coding along its chain (Bit-Swap, Kingma, Abbeel & Ho 2019)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from diffpipe.coding.grid import Grid
from diffpipe.coding.message import Message
from diffpipe.coding.pixels import LEVELS, PixelProbabilities, pop_pixels, push_pixels
from diffpipe.diffusion.denoiser import Denoise
from diffpipe.diffusion.process import CLEAN, Gaussian, NoiseLevel, append_dims, posterior_variance, step_variance
from diffpipe.diffusion.schedule import Schedule
from diffpipe.diffusion.vlb import decoder, level_log_prob, per_pixel, reverse_distribution, strided_chain

_BINS = 4  # of the grid at a level, in the narrowest of the distributions that x_t is coded under

Normals = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each number, float64 [b c h w]."""


class ChainCoder:
    """An `ImageCoder`. An image takes as many bits as the variational bound over all levels of the chain, on average.

    The encoder goes from x_0 up: at each level it draws x_t from q(x_t | x_{t-1}) with the message's bits and pushes
    x_{t-1} under p(x_{t-1} | x_t), then x_T under N(0, start_std^2). Only x_1 and x_2 are drawn before as much has been
    pushed. The bound factors q as q(x_{t-1} | x_t, x_0); the product is the same, and so is the mean length.
    """

    images_before = 2

    def __init__(
        self,
        denoise: Callable[[Tensor | None], Denoise],
        schedule: Schedule,
        variance: Literal["small", "large"],
        shape: tuple[int, int, int],
        device: torch.device,
        steps: int | None = None,
    ):
        """denoise: the denoiser of images with these labels. shape: of an image, [c h w]. steps: of the chain."""
        self._denoise = denoise
        self._variance: Literal["small", "large"] = variance
        self._shape, self._device, self._start_std = shape, device, schedule.start_std
        self._chain = strided_chain(schedule, steps, device)
        self._grids = _grids(self._chain, schedule.start_std)

    def encode(self, message: Message, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        denoise, k = self._denoise(labels), images.cpu().numpy().astype(np.int64)
        for t, grid in enumerate(self._grids):
            drawn = grid.pop_sample(message, *self._noising(t, k), stream=t)
            if t == 0:
                push_pixels(message, k.ravel(), self._pixels(denoise, drawn))
            else:
                self._grids[t - 1].push(message, k, *self._reverse(denoise, t, drawn))
            k = drawn
        self._grids[-1].push(message, k, *self._prior(len(images)))

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> UInt8[Tensor, "b c h w"]:
        denoise, k = self._denoise(labels), self._grids[-1].pop(message, *self._prior(n))
        for t, grid in reversed([*enumerate(self._grids)]):
            if t == 0:
                lower = pop_pixels(message, k.size, self._pixels(denoise, k)).reshape(k.shape)
            else:
                lower = self._grids[t - 1].pop(message, *self._reverse(denoise, t, k))
            grid.push_sample(message, k, *self._noising(t, lower), stream=t)
            k = lower
        return torch.from_numpy(k.astype(np.uint8)).to(self._device)

    def _level(self, t: int, n: int) -> NoiseLevel:
        return NoiseLevel(*(column[t].expand(n) for column in self._chain))

    def _x(self, t: int, k: np.ndarray) -> Float64[Tensor, "b c h w"]:
        """x_t of a level, or of -1, the image, whose numbers are pixels' levels."""
        return torch.from_numpy(k / 127.5 - 1 if t < 0 else self._grids[t].values(k)).to(self._device)

    def _noising(self, t: int, k: np.ndarray) -> Normals:
        """q(x_t | x_{t-1})."""
        level, lower = self._level(t, len(k)), self._level(t - 1, len(k)) if t else CLEAN
        x = self._x(t - 1, k)
        return _normals(Gaussian(append_dims(level.alpha / lower.alpha, x) * x, step_variance(level, lower)))

    def _reverse(self, denoise: Denoise, t: int, k: np.ndarray) -> Normals:
        """p(x_{t-1} | x_t) of a level that is not the lowest."""
        level, lower, x_t = self._level(t, len(k)), self._level(t - 1, len(k)), self._x(t, k)
        return _normals(reverse_distribution(level, lower, x_t, denoise(x_t, level), self._variance))

    def _pixels(self, denoise: Denoise, k: np.ndarray) -> PixelProbabilities:
        """p(x_0 | x_1)."""
        x_1 = self._x(0, k)
        first = torch.zeros(len(k), dtype=torch.int64, device=self._device)
        p = decoder(self._chain, first, denoise(x_1, self._level(0, len(k))))
        std = per_pixel(p).sqrt().expand(p.mean.shape)
        mean, std = (rearrange(value, "b c h w -> (b c h w) 1") for value in (p.mean.double(), std))
        levels = torch.arange(LEVELS, dtype=torch.float64, device=self._device)[None]
        return lambda part: level_log_prob(levels, mean[part], std[part]).exp().cpu().numpy()

    def _prior(self, n: int) -> Normals:
        shape = (n, *self._shape)
        return np.zeros(shape), np.full(shape, self._start_std)


def _grids(chain: NoiseLevel, start_std: float) -> list[Grid]:
    """The grid of each level: a quarter of the least standard deviation under which its x_t is drawn or coded."""
    levels = [CLEAN, *(NoiseLevel(*values) for values in zip(*(column.tolist() for column in chain), strict=True))]
    drawn = [step_variance(level, lower) for lower, level in pairwise(levels)]
    coded = [posterior_variance(level, lower) for lower, level in pairwise(levels[1:])]
    variances = zip(drawn, [*coded, start_std**2], strict=True)
    return [Grid(min(pair) ** 0.5 / _BINS) for pair in variances]


def _normals(p: Gaussian) -> Normals:
    mean = p.mean.double()
    return mean.cpu().numpy(), per_pixel(p).sqrt().expand(mean.shape).cpu().numpy()
