"""Samplers, from noise to an image: ancestral sampling and DDIM, over all timesteps or a few.

A sampler sees the network as `eps_model(x_t, t) -> eps_hat`; guidance, labels and conditioning are the caller's, inside
it. The timesteps are host integers and no step waits for the device. The noise of reverse step i is `noise(i)`, so
whoever calls decides what it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffpipe import plugins
from diffpipe.config import Config
from diffpipe.config.kinds import Names
from diffpipe.diffusion.process import append_dims, posterior, posterior_variance, predict_eps, predict_x0
from diffpipe.diffusion.schedule import Schedule, Spacing
from diffpipe.rng import RNG

EpsModel = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


class _ReverseStep(NamedTuple):
    """Step i goes from timestep t to s, each int64 [b]; the last one goes to x_0, at s = -1."""

    i: int
    t: Int[Tensor, " b"]
    s: Int[Tensor, " b"]
    last: bool


class SamplerConfig(Config):
    """How images are drawn."""

    kind: Annotated[str, Names("samplers", ("ancestral", "ddim"))] = "ddim"
    """The sampler: ancestral (Ho et al. 2020, algorithm 2) or ddim (Song et al. 2021), which needs fewer steps."""
    steps: int = Field(default=50, ge=1)
    """Network evaluations per image, at most the schedule's timesteps."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """The noise of ddim, from 0 (none) to 1 (as much as the ancestral sampler's)."""
    spacing: Spacing = "trailing"
    """Which timesteps are visited (Lin et al. 2023, table 2). Only trailing starts from the last one at any number of
    steps, where x_t is the noise that sampling starts from."""
    clip: bool = True
    """Clip each predicted x_0 to [-1, 1]. Off for latents, which have no such range."""
    variance: Literal["small", "large"] = "small"
    """The ancestral sampler's variance: small is the posterior's, large is beta (Ho et al. 2020, section 3.2)."""


def sample(
    eps_model: EpsModel, schedule: Schedule, config: SamplerConfig, rng: RNG, shape: Sequence[int]
) -> Float[Tensor, " b *shape"]:
    """x_0, float32 [b, *shape], one for each position of `rng`, which fixes all of its noise ("start", "reverse").

    Raises UserError where the config asks for more steps than the schedule has.
    """
    x_T = rng.normal("start", shape)  # noqa: N806 - the field's name for it
    sampler = {"ancestral": ancestral, "ddim": ddim}.get(config.kind) or plugins.find("samplers", config.kind)
    assert sampler is not None, "the config was validated while the plug-in was loaded"
    return sampler(eps_model, schedule, x_T, config, lambda i: rng.normal("reverse", shape, stream=i))


@torch.no_grad()
def ancestral(
    eps_model: EpsModel,
    schedule: Schedule,
    x_T: Float[Tensor, " b *shape"],  # noqa: N803
    config: SamplerConfig,
    noise: Noise,
) -> Float[Tensor, " b *shape"]:
    """Ho et al. 2020, algorithm 2, by way of q(x_s | x_t, x_0) at the predicted x_0, so that s may be any s < t."""
    x_t = x_T
    for i, t, s, last in _reverse_steps(schedule, x_T, config):
        x0 = _predicted_x0(eps_model, schedule, x_t, t, config.clip)
        x_t, variance = posterior(schedule, x0, x_t, t, s)
        if not last:  # the last step shows its mean, whichever the variance
            variance = schedule.beta(t, s) if config.variance == "large" else variance
            x_t = x_t + append_dims(variance.sqrt(), x_t) * noise(i)
    return x_t


@torch.no_grad()
def ddim(
    eps_model: EpsModel,
    schedule: Schedule,
    x_T: Float[Tensor, " b *shape"],  # noqa: N803
    config: SamplerConfig,
    noise: Noise,
) -> Float[Tensor, " b *shape"]:
    """Song et al. 2021 (DDIM), eq. 12 with the sigma of eq. 16.

    Where x_0 was clipped, eps is the one that goes with the clipped x_0: then eta = 1 is the ancestral sampler exactly.
    """
    x_t = x_T
    for i, t, s, last in _reverse_steps(schedule, x_T, config):
        x0 = _predicted_x0(eps_model, schedule, x_t, t, config.clip)
        eps = predict_eps(schedule, x_t, t, x0)
        variance = config.eta**2 * posterior_variance(schedule, t, s)
        towards_x_t = (schedule.one_minus_alpha_bar(s) - variance).clamp(min=0).sqrt()  # rounding can pass below 0
        x_t = append_dims(schedule.alpha_bar(s).sqrt(), x_t) * x0 + append_dims(towards_x_t, x_t) * eps
        if config.eta > 0 and not last:
            x_t = x_t + append_dims(variance.sqrt(), x_t) * noise(i)
    return x_t


def _reverse_steps(schedule: Schedule, like: Tensor, config: SamplerConfig) -> Iterator[_ReverseStep]:
    for i, (t, s) in enumerate(pairwise([*schedule.timesteps(config.steps, config.spacing), -1])):
        at_t, at_s = (torch.full((len(like),), at, device=like.device) for at in (t, s))
        yield _ReverseStep(i, at_t, at_s, last=s == -1)


def _predicted_x0(
    eps_model: EpsModel, schedule: Schedule, x_t: Float[Tensor, " b *shape"], t: Int[Tensor, " b"], clip: bool
) -> Float[Tensor, " b *shape"]:
    x0 = predict_x0(schedule, x_t, t, eps_model(x_t, t))
    return x0.clamp(-1, 1) if clip else x0
