"""Power-function profiles against closed forms, ema-pytorch's own, and numerical integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ema_pytorch import post_hoc_ema

from diffpipe.train.power_profile import (
    MAX_SIGMA_REL,
    Profile,
    decay_at,
    fit,
    gamma_to_sigma_rel,
    inner_products,
    sigma_rel_to_gamma,
)

LENGTHS = [0.03, 0.05, 0.1, 0.15, 0.2, 0.25]


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_the_exponent_of_a_length_is_the_root_of_the_papers_cubic(sigma_rel: float) -> None:
    gamma = sigma_rel_to_gamma(sigma_rel)
    assert gamma == pytest.approx(post_hoc_ema.sigma_rel_to_gamma(sigma_rel), rel=1e-12)
    assert gamma_to_sigma_rel(gamma) == pytest.approx(sigma_rel, rel=1e-9)
    # The standard deviation of x with density (gamma + 1) x^gamma on (0, 1), by its moments 1/(gamma + k).
    mean, square = ((gamma + 1) / (gamma + k) for k in (2, 3))
    assert math.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-9)


def test_lengths_of_the_paper_have_its_exponents() -> None:
    assert [round(sigma_rel_to_gamma(sigma_rel), 2) for sigma_rel in (0.05, 0.1)] == [16.97, 6.94]
    assert gamma_to_sigma_rel(0.0) == pytest.approx(12**-0.5)
    assert gamma_to_sigma_rel(0.0) > MAX_SIGMA_REL


@pytest.mark.parametrize("sigma_rel", LENGTHS)
def test_the_recursion_gives_each_step_the_integral_of_the_profile(sigma_rel: float) -> None:
    gamma, steps = sigma_rel_to_gamma(sigma_rel), 200
    shares = np.zeros(steps)
    for step in range(steps):
        shares *= decay_at(gamma, step)
        shares[step] = 1 - decay_at(gamma, step)
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(shares, np.diff(edges), atol=1e-14)
    assert shares.sum() == pytest.approx(1)


def test_inner_products_are_those_of_ema_pytorch_and_of_a_numerical_integral() -> None:
    profiles = [Profile(t, sigma_rel_to_gamma(s)) for t in (10, 25, 60) for s in (0.05, 0.1, 0.25)]
    steps, gammas = (torch.tensor(values, dtype=torch.float64) for values in zip(*profiles, strict=True))
    theirs = post_hoc_ema.p_dot_p(steps[:, None], gammas[:, None], steps[None], gammas[None])
    products = inner_products(profiles, profiles)
    np.testing.assert_allclose(products, theirs.numpy(), rtol=1e-12)
    tau = (np.arange(600_000) + 0.5) / 10_000

    def density(profile: Profile) -> np.ndarray:
        return np.where(
            tau <= profile.step, (profile.gamma + 1) / profile.step * (tau / profile.step) ** profile.gamma, 0
        )

    for i, j in ((0, 0), (0, 4), (1, 8), (5, 7)):
        integral = (density(profiles[i]) * density(profiles[j])).sum() / 10_000
        assert products[i, j] == pytest.approx(integral, rel=1e-4)


def test_a_stored_profile_is_fitted_by_itself_alone() -> None:
    stored = [Profile(t, gamma) for t in (32, 64, 96) for gamma in (6.9, 17.0)]
    factors, misfit = fit(stored, Profile(96, 17.0))
    assert factors == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-9)
    assert misfit < 1e-6


def test_the_misfit_falls_with_more_snapshots_and_is_that_of_the_profiles() -> None:
    wanted, misfits = Profile(1024, sigma_rel_to_gamma(0.2)), []
    for n in (4, 16, 64):
        stored = [Profile(1024 // n * k, sigma_rel_to_gamma(s)) for k in range(1, n + 1) for s in (0.05, 0.1)]
        factors, misfit = fit(stored, wanted)
        assert sum(factors) == pytest.approx(1, abs=1e-9)
        tau = (np.arange(102_400) + 0.5) / 100
        densities = [(g + 1) / t * np.minimum(tau / t, 1) ** g * (tau <= t) for t, g in [*stored, wanted]]
        *parts, target = densities
        left_over = target - sum(factor * part for factor, part in zip(factors, parts, strict=True))
        assert misfit == pytest.approx(np.linalg.norm(left_over) / np.linalg.norm(target), rel=0.02)
        misfits.append(misfit)
    assert misfits[0] > 0.15 > 0.03 > misfits[1] > 0.003 > misfits[2]
