"""The network as samplers and bounds see it: a function from (x_t, noise level) to the x_0 that it predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import NoiseLevel, append_dims


class Denoised(NamedTuple):
    """A network's predictions from x_t.

    x0: float [b, *shape]. variance_share: float [b, *shape], of a learned variance: the exponent between the least and
    the largest variance of the reverse step, 0 to 1 (Nichol & Dhariwal 2021, eq. 15). None: the variance is fixed.
    """

    x0: Float[Tensor, " b *shape"]
    variance_share: Float[Tensor, " b *shape"] | None = None


Denoise = Callable[[Tensor, NoiseLevel], Denoised]
NetworkFunction = Callable[[Tensor, Tensor, NoiseLevel], Tensor]
"""From the network's input, the time [b] and the level to the network's output."""


def denoiser(
    network: NetworkFunction,
    parameterization: Parameterization,
    *,
    clip: bool = False,
    dynamic_threshold: float | None = None,
    learned_variance: bool = False,
) -> Denoise:
    """The denoiser of a network. Guidance, labels and conditioning are the caller's, inside `network`.

    clip: bound each predicted x_0 to [-1, 1]. dynamic_threshold: bound it to its own quantile of this order, and scale
    it back to [-1, 1] where that is beyond (Saharia et al. 2022, section 2.3). learned_variance: the second half of the
    output's channels is the variance.
    """

    def denoise(x: Float[Tensor, " b *shape"], level: NoiseLevel) -> Denoised:
        output = network(scaled_input(parameterization, level, x), network_time(level, x), level)
        share = None
        if learned_variance:
            output, share = output.chunk(2, dim=1)
            share = (share + 1) / 2
        return Denoised(parameterization.x0(level, x, output.to(torch.promote_types(output.dtype, x.dtype))), share)

    return bounded(denoise, clip=clip, dynamic_threshold=dynamic_threshold)


def bounded(denoise: Denoise, *, clip: bool = False, dynamic_threshold: float | None = None) -> Denoise:
    """The denoiser with each predicted x_0 clipped, see `denoiser`."""
    if dynamic_threshold is None and not clip:
        return denoise

    def within(x: Float[Tensor, " b *shape"], level: NoiseLevel) -> Denoised:
        x0, share = denoise(x, level)
        return Denoised(x0.clamp(-1, 1) if dynamic_threshold is None else thresholded(x0, dynamic_threshold), share)

    return within


def scaled_input(
    parameterization: Parameterization, level: NoiseLevel, x: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """The network's input: x_t scaled to unit variance for edm, else x_t itself."""
    if parameterization.kind != "edm":
        return x
    return append_dims(parameterization.input_scale(level), x) * x


def network_time(level: NoiseLevel, x: Float[Tensor, " b *shape"]) -> Tensor:
    """The level's time for each sample, [b] on x's device: int64 for a timestep, else float32."""
    if isinstance(level.time, Tensor):
        return level.time
    dtype = torch.int64 if isinstance(level.time, int) else torch.float32
    return torch.full((len(x),), level.time, dtype=dtype, device=x.device)


def thresholded(x0: Float[Tensor, " b *shape"], order: float) -> Float[Tensor, " b *shape"]:
    """Each sample, bounded to s = max(1, its quantile of |x_0|) and divided by s (Saharia et al. 2022)."""
    bound = torch.quantile(x0.abs().flatten(1), order, dim=1).clamp(min=1)
    bound = append_dims(bound, x0)
    return x0.clamp(-bound, bound) / bound
