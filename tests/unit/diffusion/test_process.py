"""q and its posterior: against diffusers, against Bayes' rule, and against their own composition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from diffpipe.diffusion.parameterization import eps_from_x0, x0_from_eps
from diffpipe.diffusion.process import posterior, posterior_variance, q_sample, q_step
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig

NAMES: dict[str, Any] = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(params=NAMES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def schedule(kind) -> DiscreteSchedule:
    return DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))


def images(n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at(t: int, n: int = 1) -> torch.Tensor:
    return torch.full((n,), t)


def test_q_sample_agrees_with_diffusers(schedule, kind):
    t = torch.arange(schedule.T)
    x0, eps = images(schedule.T, 0).clamp(-1, 1), images(schedule.T, 1).clamp(-3, 3)
    theirs: Any = DDPMScheduler(beta_schedule=NAMES[kind])
    # diffusers takes the square root of 1 - alpha_bar in float32, where 1e-4 keeps four digits.
    torch.testing.assert_close(q_sample(schedule.level(t), x0, eps), theirs.add_noise(x0, eps, t), atol=1e-5, rtol=0)
    theirs.alphas_cumprod = torch.cumprod(1 - schedule.betas, 0)
    exact = theirs.add_noise(x0.double(), eps.double(), t).float()
    torch.testing.assert_close(q_sample(schedule.level(t), x0, eps), exact, atol=1e-6, rtol=0)


def test_the_posterior_variance_agrees_with_diffusers(schedule, kind):
    theirs = DDPMScheduler(beta_schedule=NAMES[kind])
    variances = torch.stack([theirs._get_variance(t) for t in range(1, schedule.T)])
    t = torch.arange(1, schedule.T)
    ours = posterior_variance(schedule.level(t), schedule.level(t - 1)).float()
    torch.testing.assert_close(ours, variances, atol=1e-6, rtol=0)


def test_the_posterior_mean_agrees_with_diffusers(schedule, kind, monkeypatch):
    """A step of diffusers that draws no noise returns it, given x_0 in the network's place.

    diffusers forms 1 - alpha_bar_t / alpha_bar_s in float32, which leaves it three digits: so its formula gets our
    betas in float64, and we have float32 data.
    """
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **kwargs: torch.zeros(shape))
    theirs: Any = DDPMScheduler(beta_schedule=NAMES[kind], prediction_type="sample", clip_sample=False)
    theirs.alphas_cumprod = torch.cumprod(1 - schedule.betas, 0)
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    x0, x_t = images(1, 0).clamp(-1, 1), images(1, 1).clamp(-3, 3)
    for t in range(schedule.T):
        mean, variance = posterior(schedule.level(at(t)), schedule.level(at(t - 1)), x0, x_t)
        step = theirs.step(x0.double(), t, x_t.double()).prev_sample
        torch.testing.assert_close(mean, step.float(), atol=1e-6, rtol=0)
        if t > 0:
            assert variance.item() == pytest.approx(theirs._get_variance(t).item(), rel=1e-6)


def test_steps_of_q_compose_to_q_sample(schedule):
    """With eps = 0 the steps carry the mean, and each adds the variance that eps = 1 shows."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    mean, variance = one, zero
    for t in range(schedule.T):
        level, lower = schedule.level(at(t)), schedule.level(at(t - 1))
        mean = q_step(level, lower, mean, zero)
        variance = q_step(level, lower, variance.sqrt(), zero) ** 2 + q_step(level, lower, zero, one) ** 2
        torch.testing.assert_close(mean, q_sample(level, one, zero), atol=0, rtol=1e-9)
        torch.testing.assert_close(variance, q_sample(level, zero, one) ** 2, atol=0, rtol=1e-9)


def log_normal(x: float, mean: float, variance: float) -> float:
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (500, 499), (500, 20), (999, 998), (999, 0), (979, 959)])
@pytest.mark.parametrize(("x0", "x_t", "x_s"), [(0.3, -0.8, 0.1), (-1.0, 2.5, -0.4), (0.0, 0.0, 1.0)])
def test_the_posterior_is_bayes_rule(schedule, t, s, x0, x_t, x_s):
    """q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0), from the plain products of 1 - beta."""
    alpha_bar = np.cumprod(1 - schedule.betas.numpy())
    ratio = np.prod(1 - schedule.betas.numpy()[s + 1 : t + 1])
    scalar = torch.tensor([[x0], [x_t]], dtype=torch.float64)
    mean, variance = posterior(schedule.level(at(t)), schedule.level(at(s)), scalar[:1], scalar[1:])
    left = log_normal(x_s, mean.item(), variance.item())
    left += log_normal(x_t, alpha_bar[t] ** 0.5 * x0, 1 - alpha_bar[t])
    right = log_normal(x_t, ratio**0.5 * x_s, 1 - ratio) + log_normal(x_s, alpha_bar[s] ** 0.5 * x0, 1 - alpha_bar[s])
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)


def test_the_posterior_of_x0_is_x0(schedule):
    x0, x_t = images(3, 0), images(3, 1)
    mean, variance = posterior(schedule.level(torch.tensor([0, 400, 999])), schedule.level(at(-1, 3)), x0, x_t)
    torch.testing.assert_close(mean, x0)
    assert (variance == 0).all()


def test_x0_and_eps_are_recovered_from_x_t(schedule):
    t = torch.tensor([0, 1, 250, 700, 999])
    x0, eps = images(5, 0, torch.float64), images(5, 1, torch.float64)
    x_t = q_sample(schedule.level(t), x0, eps)
    torch.testing.assert_close(x0_from_eps(schedule.level(t), x_t, eps), x0, atol=1e-8, rtol=0)
    torch.testing.assert_close(eps_from_x0(schedule.level(t), x_t, x0), eps, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_each_sample_has_its_own_timestep_whatever_its_shape(schedule, shape):
    t = torch.tensor([3, 999, 500])
    x0, eps = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    together = q_sample(schedule.level(t), x0, eps)
    alone = [q_sample(schedule.level(t[i : i + 1]), x0[i : i + 1], eps[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_half_precision_data_meets_float32_coefficients(schedule):
    x0, eps = images(2, 0), images(2, 1)
    t = torch.tensor([10, 900])
    low = q_sample(schedule.level(t), x0.bfloat16(), eps.bfloat16())
    assert low.dtype == torch.float32
    assert torch.equal(low, q_sample(schedule.level(t), x0.bfloat16().float(), eps.bfloat16().float()))
