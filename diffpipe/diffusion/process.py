"""The forward process q in closed form: noising, one step of it, and its posterior, between any two noise levels.

Every process here is x_t = alpha_t x_0 + sigma_t eps. Variance-preserving ones have alpha^2 + sigma^2 = 1 (Ho et al.
2020), variance-exploding ones alpha = 1 (Karras et al. 2022), rectified flow alpha = 1 - sigma (Liu et al. 2023).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Coefficient = Any
"""float64 [b], one for each sample, or a Python number for all."""
Path = Literal["preserving", "exploding", "straight"]
"""The curve of (alpha, sigma): the quarter circle of a variance-preserving process, alpha = 1, or alpha = 1 - sigma."""


class NoiseLevel(NamedTuple):
    """The coefficients of x_t = alpha x_0 + sigma eps, and the time that a network is given for them.

    Training has one level per sample: alpha and sigma are float64 [b] on the data's device, time is int64 or float32
    [b]. A sampler has one for the whole batch: Python numbers, so that no step waits for the device.
    """

    alpha: Coefficient
    sigma: Coefficient
    time: Any

    @property
    def ratio(self) -> Coefficient:
        """sigma / alpha: the noise of x_t / alpha, which is sigma in Karras et al. 2022. Infinite at pure noise."""
        if isinstance(self.alpha, Tensor):
            return self.sigma / self.alpha
        return self.sigma / self.alpha if self.alpha else math.inf


CLEAN = NoiseLevel(1.0, 0.0, 0)
"""The level of x_0 itself."""


class Gaussian(NamedTuple):
    """A normal distribution for each sample. mean: float [b, *shape].

    variance: for all pixels of all samples (a number), for those of a sample ([b]), or for each pixel ([b, *shape]).
    """

    mean: Float[Tensor, " b *shape"]
    variance: Coefficient


def q_sample(
    level: NoiseLevel, x0: Float[Tensor, " b *shape"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_t ~ q(x_t | x_0) for standard normal eps (Ho et al. 2020, eq. 4)."""
    return append_dims(level.alpha, x0) * x0 + append_dims(level.sigma, x0) * eps


def q_step(
    level: NoiseLevel, lower: NoiseLevel, x: Float[Tensor, " b *shape"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_t at `level` ~ q(x_t | x_s) for x_s at a lower level and standard normal eps (Ho et al. 2020, eq. 2)."""
    std = step_variance(level, lower) ** 0.5
    return append_dims(level.alpha / lower.alpha, x) * x + append_dims(std, x) * eps


def step_variance(level: NoiseLevel, lower: NoiseLevel) -> Coefficient:
    """The variance of q(x_t | x_s), t at `level`: beta_t where s = t - 1."""
    return level.sigma**2 - (level.alpha / lower.alpha) ** 2 * lower.sigma**2


def posterior_variance(level: NoiseLevel, lower: NoiseLevel) -> Coefficient:
    """The variance of q(x_s | x_t, x_0), s at `lower`: beta tilde of Ho et al. 2020, eq. 7, where s = t - 1."""
    return step_variance(level, lower) * lower.sigma**2 / level.sigma**2


def posterior(
    level: NoiseLevel, lower: NoiseLevel, x0: Float[Tensor, " b *shape"], x_t: Float[Tensor, " b *shape"]
) -> Gaussian:
    """q(x_s | x_t, x_0) for t at `level` and s at any lower one (Ho et al. 2020, eqs. 6 and 7, have s = t - 1).

    At the level of x_0 it is the point x_0, of variance 0. At a level without signal, x_t says nothing about x_s.
    """
    of_x0 = lower.alpha * step_variance(level, lower) / level.sigma**2
    of_x_t = level.alpha / lower.alpha * lower.sigma**2 / level.sigma**2
    mean = append_dims(of_x0, x_t) * x0 + append_dims(of_x_t, x_t) * x_t
    return Gaussian(mean, posterior_variance(level, lower))


def reverse_step(
    level: NoiseLevel,
    lower: NoiseLevel,
    x0: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    eps: Float[Tensor, " b *shape"],
) -> Float[Tensor, " b *shape"]:
    """x_s ~ q(x_s | x_t, x_0) for standard normal eps. A step to the level of x_0 leads to x_0 itself."""
    mean, variance = posterior(level, lower, x0, x_t)
    return mean + append_dims(variance**0.5, mean) * eps


def learned_variance(
    level: NoiseLevel, lower: NoiseLevel, share: Float[Tensor, " b *shape"], least: Coefficient = None
) -> Float[Tensor, " b *shape"]:
    """beta^share · beta_tilde^(1 - share) (Nichol & Dhariwal 2021, eq. 15).

    least: in the place of the posterior's variance beta tilde, where that is 0.
    """
    largest = step_variance(level, lower)
    least = posterior_variance(level, lower) if least is None else least
    log_largest, log_least = (
        append_dims(v.log(), share) if isinstance(v, Tensor) else math.log(v) for v in (largest, least)
    )
    return (share * log_largest + (1 - share) * log_least).exp()


def append_dims(coefficient: Coefficient, x: Float[Tensor, " b *shape"]) -> Coefficient:
    """A coefficient for each sample, with x's number of dimensions, in x's precision but at least float32.

    A number stays one.
    """
    if not isinstance(coefficient, Tensor):
        return coefficient
    ones = " ".join("1" * (x.ndim - 1))
    return rearrange(coefficient, f"b -> b {ones}").to(torch.promote_types(x.dtype, torch.float32))
