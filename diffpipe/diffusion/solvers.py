"""Solvers of higher order: Heun's method, EDM's stochastic sampler, DPM-Solver++ and UniPC.

They are samplers as in `samplers.py`, and need fewer steps than ancestral sampling or DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoise
from diffpipe.diffusion.parameterization import eps_from_x0
from diffpipe.diffusion.process import CLEAN, NoiseLevel, Path
from diffpipe.diffusion.sampler_config import Noise, SamplerConfig, steps
from diffpipe.diffusion.schedule import Schedule


@torch.no_grad()
def heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    config: SamplerConfig,
    noise: Noise,  # noqa: ARG001 - the others draw from it
) -> Float[Tensor, " b *shape"]:
    """Heun's second-order method for the probability flow (Karras et al. 2022, algorithm 1).

    With a variance-preserving schedule its steps are in the angle, see `_heun_step`.
    """
    for _, level, lower in steps(schedule, config):
        x = _heun_step(denoise, x, level, lower, schedule.path)
    return x


@torch.no_grad()
def edm(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise
) -> Float[Tensor, " b *shape"]:
    """Heun's steps, with noise added before each (Karras et al. 2022, algorithm 2), in x_t / alpha and its sigma.

    The level with the added noise lies between timesteps where a schedule has such.
    """
    gamma = min(config.churn / config.steps, math.sqrt(2) - 1)
    for i, level, lower in steps(schedule, config):
        sigma, start = float(level.ratio), level
        if gamma > 0 and config.churn_min <= sigma <= (config.churn_max or math.inf):
            start = schedule.at_ratio(sigma * (1 + gamma))
            added = sigma * math.sqrt((1 + gamma) ** 2 - 1) * config.churn_noise
            x = start.alpha * (x / level.alpha + added * noise(i))
        x = _heun_step(denoise, x, start, lower, schedule.path)
    return x


def _heun_step(denoise: Denoise, x: Tensor, level: NoiseLevel, lower: NoiseLevel, path: Path) -> Tensor:
    """A step along dx/du = alpha' x_0 + sigma' eps, in the variable u of the path. The step to x_0 is Euler's.

    u is sigma for EDM's schedule, as in the paper, and for a straight path. A variance-preserving process moves on a
    circle, and u is its angle atan(sigma / alpha): there dx/du is v (Salimans & Ho 2022, section 4), of the size of x
    at every level. In sigma / alpha, as in EDM's paper, a first step from 20,000 (cosine) would be far too long.
    """

    def slope(x: Tensor, level: NoiseLevel) -> Tensor:
        x0 = denoise(x, level).x0
        eps = eps_from_x0(level, x, x0)
        match path:
            case "preserving":
                return level.alpha * eps - level.sigma * x0
            case "exploding":
                return eps
            case "straight":
                return eps - x0

    def variable(level: NoiseLevel) -> float:
        return math.atan2(level.sigma, level.alpha) if path == "preserving" else level.sigma

    width, first = variable(lower) - variable(level), slope(x, level)
    euler = x + width * first
    if lower is CLEAN:
        return euler
    return x + width * (first + slope(euler, lower)) / 2


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    config: SamplerConfig,
    noise: Noise,  # noqa: ARG001 - the others draw from it
) -> Float[Tensor, " b *shape"]:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order in lambda = log(alpha / sigma).

    One evaluation a step. The first step and the one to x_0 are of first order.
    """
    return _dpmpp_2m(denoise, schedule, x, config, None)


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise
) -> Float[Tensor, " b *shape"]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, appendix B.6): the same for the reverse SDE."""
    return _dpmpp_2m(denoise, schedule, x, config, noise)


def _dpmpp_2m(
    denoise: Denoise, schedule: Schedule, x: Tensor, config: SamplerConfig, noise: Noise | None
) -> Float[Tensor, " b *shape"]:
    before: tuple[Tensor, float] | None = None  # x_0 at the last step, and that step's width in lambda
    for i, level, lower in steps(schedule, config):
        h = _log_snr(lower) - _log_snr(level)
        x0 = denoise(x, level).x0
        kept = 1.0 if noise is None else math.exp(-h)
        towards = -lower.alpha * math.expm1(-h if noise is None else -2 * h)
        x_next = lower.sigma / level.sigma * kept * x + towards * x0
        if before is not None and lower is not CLEAN:
            before_x0, before_h = before
            x_next = x_next + 0.5 * towards * (h / before_h) * (x0 - before_x0)
        if noise is not None and lower is not CLEAN:
            x_next = x_next + lower.sigma * math.sqrt(1 - kept**2) * noise(i)
        x, before = x_next, (x0, h)
    return x


@torch.no_grad()
def unipc(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    config: SamplerConfig,
    noise: Noise,  # noqa: ARG001 - the others draw from it
) -> Float[Tensor, " b *shape"]:
    """UniPC of order 2 with B(h) = e^h - 1 and x_0 prediction (Zhao et al. 2023, algorithms 5 and 6).

    The prediction at a new point corrects that point, and then takes the next step from it: one evaluation a step.
    """
    before: tuple[Tensor, float] | None = None
    correct: Callable[[Tensor], Tensor] | None = None
    for _, level, lower in steps(schedule, config):
        x0 = denoise(x, level).x0
        if correct is not None:
            x = correct(x0)
        h = _log_snr(lower) - _log_snr(level)
        towards = -lower.alpha * math.expm1(-h)
        first_order = lower.sigma / level.sigma * x + towards * x0
        x = first_order
        if before is None:
            correct = _corrector_of_order_1(first_order, towards, x0)
        else:
            r = -(before[1] / h)
            slope = (before[0] - x0) / r
            correct = _corrector_of_order_2(first_order, towards, h, x0, r, slope)
            x = first_order if lower is CLEAN else first_order + 0.5 * towards * slope
        before = (x0, h)
    return x


def _corrector_of_order_1(first_order: Tensor, towards: float, x0: Tensor) -> Callable[[Tensor], Tensor]:
    """UniC: the new point, given the prediction there."""
    return lambda new: first_order + 0.5 * towards * (new - x0)


def _corrector_of_order_2(
    first_order: Tensor, towards: float, h: float, x0: Tensor, r: float, slope: Tensor
) -> Callable[[Tensor], Tensor]:
    """UniC with the point before the last. r: its distance in steps. slope: from it, by step."""
    # The weights solve rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2 (eq. 9), with hh = -h.
    phi_1 = math.expm1(-h) / -h - 1
    phi_2 = phi_1 / -h - 0.5
    b_1, b_2 = phi_1 / math.expm1(-h), 2 * phi_2 / math.expm1(-h)
    rho_1 = (b_1 - b_2) / (1 - r)
    return lambda new: first_order + towards * (rho_1 * slope + (b_1 - rho_1) * (new - x0))


def _log_snr(level: NoiseLevel) -> float:
    """lambda = log(alpha / sigma): infinite at x_0, and -infinite at pure noise."""
    if level.sigma == 0:
        return math.inf
    return math.log(level.alpha / level.sigma) if level.alpha else -math.inf
