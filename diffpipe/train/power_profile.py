"""Power-function averages: their lengths, their recursion, and any length from stored ones (Karras et al. 2024).

The average after step t weighs the weights after step τ by p(τ) ∝ τ^gamma on (0, t] (arXiv:2312.02696, section 3.1).
Its length sigma_rel is the standard deviation of that profile, relative to t.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

MAX_SIGMA_REL = 0.28
"""Lengths are below it: gamma = 0, the plain mean of all steps, has 12^(-1/2) = 0.2887."""


class Profile(NamedTuple):
    """The profile of an average after `step` steps: p(τ) ∝ τ^gamma on (0, step]."""

    step: int
    gamma: float


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    """The exponent gamma ≥ 0 of a length, in (0, 12^(-1/2)]: the largest root of a cubic (appendix C)."""
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def gamma_to_sigma_rel(gamma: float) -> float:
    """The length of an exponent gamma > -1 (section 3.1)."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def decay_at(gamma: float, step: int) -> float:
    """The share of the average that step 0, 1, … keeps: β = (1 - 1/t)^(gamma+1) with t = step + 1 (section 3.1).

    By this recursion the weights after step τ have the share (τ/t)^(gamma+1) - ((τ-1)/t)^(gamma+1), which is the
    integral of the profile over that step.
    """
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def inner_products(a: list[Profile], b: list[Profile]) -> Float64[ndarray, "a b"]:
    """The integrals of the products of two profiles, each of integral 1 (appendix C)."""
    t_a, gamma_a = np.array(a, dtype=np.float64).T[:, :, None]
    t_b, gamma_b = np.array(b, dtype=np.float64).T[:, None, :]
    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def fit(stored: list[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The factor of each stored average in the sum whose profile is nearest to the wanted one (section 3.2).

    Also the norm of what is left over, relative to that of the wanted profile. Least squares in float64, among the
    factors that add up to one: so weights that do not move are kept exactly, however few averages there are.
    """
    gram, right = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # to profiles of norm 1: a late or narrow one is much larger than an early one
    system = np.block([[gram * scale[:, None] * scale, scale[:, None]], [scale, 0.0]])  # with a Lagrange multiplier
    factors = np.linalg.lstsq(system, np.append(right * scale, 1.0), rcond=1e-13)[0][:-1] * scale
    norm = inner_products([wanted], [wanted])[0, 0]
    left_over = norm - 2 * factors @ right + factors @ gram @ factors
    return factors.tolist(), math.sqrt(max(0.0, left_over / norm))
