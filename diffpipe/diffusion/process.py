"""The forward process q in closed form: noising, one step of it, its posterior, and x_0 and eps from one another.

t and s are int64 [b], a timestep for each sample, on any device. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

from diffpipe.diffusion.schedule import Schedule


class IsotropicGaussian(NamedTuple):
    """A normal distribution for each sample, with one variance for all of its pixels.

    mean: float [b, *shape]. variance: float [b], positive; 0 only for the posterior at s = -1, which is x_0 itself.
    """

    mean: Float[Tensor, " b *shape"]
    variance: Float[Tensor, " b"]


def q_sample(
    schedule: Schedule, x0: Float[Tensor, " b *shape"], t: Int[Tensor, " b"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_t ~ q(x_t | x_0) for standard normal eps (Ho et al. 2020, eq. 4)."""
    signal, noise = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t).sqrt()
    return append_dims(signal, x0) * x0 + append_dims(noise, x0) * eps


def q_step(
    schedule: Schedule, x_prev: Float[Tensor, " b *shape"], t: Int[Tensor, " b"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_t ~ q(x_t | x_{t-1}) for standard normal eps (Ho et al. 2020, eq. 2)."""
    signal, noise = schedule.alpha(t, t - 1).sqrt(), schedule.beta(t, t - 1).sqrt()
    return append_dims(signal, x_prev) * x_prev + append_dims(noise, x_prev) * eps


def posterior(
    schedule: Schedule,
    x0: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    t: Int[Tensor, " b"],
    s: Int[Tensor, " b"],
) -> IsotropicGaussian:
    """q(x_s | x_t, x_0) for any -1 ≤ s < t: eqs. 6 and 7 of Ho et al. 2020, which have s = t - 1.

    For s = -1 it is the point x_0, of variance 0.
    """
    var_t, var_s, beta = schedule.one_minus_alpha_bar(t), schedule.one_minus_alpha_bar(s), schedule.beta(t, s)
    of_x0, of_x_t = schedule.alpha_bar(s).sqrt() * beta / var_t, schedule.alpha(t, s).sqrt() * var_s / var_t
    mean = append_dims(of_x0, x_t) * x0 + append_dims(of_x_t, x_t) * x_t
    return IsotropicGaussian(mean, posterior_variance(schedule, t, s).to(mean.dtype))


def posterior_variance(schedule: Schedule, t: Int[Tensor, " b"], s: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """The variance of q(x_s | x_t, x_0), for -1 ≤ s < t: beta tilde of eq. 7 where s = t - 1."""
    return schedule.one_minus_alpha_bar(s) / schedule.one_minus_alpha_bar(t) * schedule.beta(t, s)


def reverse_step(
    schedule: Schedule,
    x0: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, " b *shape"],
) -> Float[Tensor, " b *shape"]:
    """x_{t-1} ~ q(x_{t-1} | x_t, x_0) for standard normal eps. From t = 0 the step leads to x_0 itself."""
    mean, variance = posterior(schedule, x0, x_t, t, t - 1)
    return mean + append_dims(variance.sqrt(), mean) * eps


def predict_x0(
    schedule: Schedule, x_t: Float[Tensor, " b *shape"], t: Int[Tensor, " b"], eps: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """x_0 from x_t and eps: `q_sample` solved for x_0 (Ho et al. 2020, eq. 15)."""
    signal, noise = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t).sqrt()
    return (x_t - append_dims(noise, x_t) * eps) / append_dims(signal, x_t)


def predict_eps(
    schedule: Schedule, x_t: Float[Tensor, " b *shape"], t: Int[Tensor, " b"], x0: Float[Tensor, " b *shape"]
) -> Float[Tensor, " b *shape"]:
    """eps from x_t and x_0: `q_sample` solved for eps."""
    signal, noise = schedule.alpha_bar(t).sqrt(), schedule.one_minus_alpha_bar(t).sqrt()
    return (x_t - append_dims(signal, x_t) * x0) / append_dims(noise, x_t)


def append_dims(coefficient: Float[Tensor, " b"], x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b *ones"]:
    """A coefficient for each sample, with x's number of dimensions, in x's precision but at least float32."""
    ones = " ".join("1" * (x.ndim - 1))
    return rearrange(coefficient, f"b -> b {ones}").to(torch.promote_types(x.dtype, torch.float32))
