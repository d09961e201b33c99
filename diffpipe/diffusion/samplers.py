"""Samplers, from noise to an image, over a few or all noise levels of any process x_t = alpha x_0 + sigma eps.

A sampler is a function of (denoise, schedule, x, config, noise): the network as `denoise(x_t, level) -> Denoised`, the
schedule, whose `levels` it visits as Python numbers, the noise that it starts from, and `noise(i)` for step i, so that
whoever calls decides what that depends on. The last step goes from the last level to x_0. No step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffpipe import plugins
from diffpipe.diffusion import solvers
from diffpipe.diffusion.denoiser import Denoise
from diffpipe.diffusion.parameterization import eps_from_x0
from diffpipe.diffusion.process import CLEAN, learned_variance, posterior, posterior_variance, step_variance
from diffpipe.diffusion.sampler_config import SAMPLERS, Noise, Sampler, SamplerConfig, steps
from diffpipe.diffusion.schedule import Schedule
from diffpipe.errors import UserError
from diffpipe.rng import RNG


def sample(
    denoise: Denoise, schedule: Schedule, config: SamplerConfig, rng: RNG, shape: Sequence[int]
) -> Float[Tensor, " b *shape"]:
    """x_0, float32 [b, *shape], one for each position of `rng`, which fixes all of its noise ("start", "reverse").

    Raises UserError where the schedule does not have the levels that the config asks for.
    """
    check_sampler(schedule, config)
    start = rng.normal("start", shape)
    start = start if schedule.start_std == 1 else schedule.start_std * start
    return find(config.kind)(denoise, schedule, start, config, lambda i: rng.normal("reverse", shape, stream=i))


def find(kind: str) -> Sampler:
    """The sampler of this name, one of this module's or a plug-in's."""
    own = vars(solvers) | globals()
    sampler = own[kind] if kind in SAMPLERS else plugins.find("samplers", kind)
    assert sampler is not None, "the config was validated while the plug-in was loaded"
    return sampler


def check_sampler(schedule: Schedule, config: SamplerConfig) -> None:
    """Raises UserError where the schedule does not have the levels that the sampler visits."""
    levels = schedule.levels(config.steps, config.spacing)
    if config.kind == "edm" and math.isinf(float(levels[0].ratio)):
        raise UserError(
            "stage.sampler.kind=edm starts at a finite sigma, and this schedule without any signal; use heun or "
            "dpmpp_2m"
        )


@torch.no_grad()
def ancestral(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise
) -> Float[Tensor, " b *shape"]:
    """Ho et al. 2020, algorithm 2, by way of q(x_s | x_t, x_0) at the predicted x_0, so that s may be any lower level.

    The last step shows its mean, whichever the variance.
    """
    for i, level, lower in steps(schedule, config):
        denoised = denoise(x, level)
        x, variance = posterior(level, lower, denoised.x0, x)
        if lower is CLEAN:
            break
        if denoised.variance_share is not None:
            variance = learned_variance(level, lower, denoised.variance_share)
        elif config.variance == "large":
            variance = step_variance(level, lower)
        x = x + variance**0.5 * noise(i)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise
) -> Float[Tensor, " b *shape"]:
    """Song et al. 2021 (DDIM), eq. 12 with the sigma of eq. 16.

    Where x_0 was clipped, eps is the one that goes with the clipped x_0: then eta = 1 is the ancestral sampler exactly.
    """
    for i, level, lower in steps(schedule, config):
        x0 = denoise(x, level).x0
        variance = config.eta**2 * posterior_variance(level, lower)
        towards_x = max(lower.sigma**2 - variance, 0.0) ** 0.5  # rounding can pass below 0
        x = lower.alpha * x0 + towards_x * eps_from_x0(level, x, x0)
        if config.eta > 0 and lower is not CLEAN:
            x = x + variance**0.5 * noise(i)
    return x


def euler(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise
) -> Float[Tensor, " b *shape"]:
    """Euler's method for the probability flow: DDIM without noise.

    On the levels of EDM it is Euler's step in sigma, and on those of a flow Euler's step in t along the velocity.
    """
    return ddim(denoise, schedule, x, config.model_copy(update={"eta": 0.0}), noise)
