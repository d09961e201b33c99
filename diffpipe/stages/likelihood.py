"""Log-likelihoods and divergences in closed form, in nats unless the name says bits. No networks here."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

LOWEST_LOG_SCALE = -7.0
"""The narrowest logistic, a ninth of a bin of 256: a narrower one gains nothing and its gradients explode."""


def bounded_log_scale(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A network's output as the log-scale of a logistic: above `LOWEST_LOG_SCALE`, and raw itself far above it."""
    return LOWEST_LOG_SCALE + F.softplus(raw - LOWEST_LOG_SCALE)


def discretized_logistic(
    values: Integer[Tensor, "*#shape"],
    mean: Float[Tensor, "*#shape"],
    log_scale: Float[Tensor, "*#shape"],
    levels: int = 256,
) -> Float[Tensor, "*#shape"]:
    """The log-probability of each value under a logistic distribution cut into as many bins as there are levels.

    mean and log_scale are those of values scaled to [-1, 1], where one of 256 bins is 2/255 wide; the first and the
    last bin take the tails (Kingma et al. 2016, appendix C; Salimans et al. 2017, eq. 2). In mean's precision.
    """
    last = levels - 1
    x = values.to(mean.dtype) / (last / 2) - 1
    inverse_scale = torch.exp(-log_scale)
    above, below = (x - mean + 1 / last) * inverse_scale, (x - mean - 1 / last) * inverse_scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)): no difference of nearly equal numbers is taken.
    up_to_above, from_below = F.logsigmoid(above), F.logsigmoid(-below)
    between = up_to_above + from_below + torch.log(-torch.expm1(-2 / last * inverse_scale))
    return torch.where(values == 0, up_to_above, torch.where(values == last, from_below, between))


def gaussian_log_density(
    z: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """The log-density of each number under its own normal distribution."""
    return -0.5 * ((z - mean).square() * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi))


def kl_to_standard_normal(
    mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """KL(N(mean, variance) || N(0, 1)) of each number (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def importance_weighted(log_weights: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    """log 1/k Σ w_k of w_k = p(x, z_k) / q(z_k | x): a lower bound on log p(x) (Burda et al. 2016, eq. 8)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def bits_per_dim(nats: Float[Tensor, " b"], dims: int) -> Float[Tensor, " b"]:
    """Bits per dimension, from nats per image of `dims` numbers."""
    return nats / (dims * math.log(2))
