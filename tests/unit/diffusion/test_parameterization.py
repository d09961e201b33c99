"""Every target against the papers' formulas, and every conversion against the x_0 and eps that it started from."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.parameterization import Parameterization, Prediction, eps_from_x0, x0_from_eps
from diffpipe.diffusion.process import NoiseLevel, append_dims, q_sample
from diffpipe.diffusion.schedule import DiscreteScheduleConfig

SCHEDULES: dict[str, Any] = {
    "linear": DiscreteScheduleConfig(kind="linear").build(),
    "cosine": DiscreteScheduleConfig(kind="cosine").build(),
    "edm": EDMScheduleConfig(kind="edm").build(),
    "flow": FlowScheduleConfig(kind="flow").build(),
}


def data(seed: int, n: int) -> torch.Tensor:
    return torch.randn(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", get_args(Prediction))
@pytest.mark.parametrize("name", SCHEDULES)
def test_x0_and_eps_are_recovered_from_every_target(kind: Prediction, name: str) -> None:
    """For each sample's own level, and for one level as numbers."""
    chain = SCHEDULES[name].chain()
    rows = torch.tensor([0, 1, 400, 800, 999])
    level = NoiseLevel(*(column[rows] for column in chain))
    x0, eps = data(0, 5), data(1, 5)
    x_t, parameterization = q_sample(level, x0, eps), Parameterization(kind)
    target = parameterization.target(level, x0, eps)
    largest = level.ratio.max().item() + 1 / level.ratio.min().item()
    torch.testing.assert_close(parameterization.x0(level, x_t, target), x0, atol=1e-13 * largest, rtol=1e-9)
    torch.testing.assert_close(parameterization.eps(level, x_t, target), eps, atol=1e-13 * largest, rtol=1e-9)
    for i in range(5):
        number = NoiseLevel(*(column[i].item() for column in level))
        one = slice(i, i + 1)
        assert torch.equal(parameterization.target(number, x0[one], eps[one]), target[one])
        got = parameterization.x0(number, x_t[one], target[one])
        torch.testing.assert_close(got, x0[one], atol=1e-13 * largest, rtol=1e-9)


@pytest.mark.parametrize("kind", get_args(Prediction))
def test_an_error_of_the_output_is_one_of_x0_by_the_stated_factor(kind: Prediction) -> None:
    level = SCHEDULES["cosine"].level(torch.tensor([3, 500, 990]))
    x0, eps = data(0, 3), data(1, 3)
    x_t, parameterization = q_sample(level, x0, eps), Parameterization(kind)
    target = parameterization.target(level, x0, eps)
    wrong = parameterization.x0(level, x_t, target + 0.01)
    error = ((wrong - x0) / 0.01).square().mean((1, 2, 3))
    one = torch.ones_like(error)
    torch.testing.assert_close(error, parameterization.x0_error(level) * one, rtol=1e-6, atol=0)
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(error * snr, parameterization.eps_error(level) * one, rtol=1e-6, atol=0)


def test_v_is_that_of_salimans_and_ho() -> None:
    level = SCHEDULES["cosine"].level(torch.tensor([3, 500, 990]))
    x0, eps = data(0, 3), data(1, 3)
    phi = torch.atan2(level.sigma, level.alpha)[:, None, None, None]
    v = Parameterization("v").target(level, x0, eps)
    torch.testing.assert_close(v, phi.cos() * eps - phi.sin() * x0)
    z = q_sample(level, x0, eps)
    torch.testing.assert_close(Parameterization("v").x0(level, z, v), phi.cos() * z - phi.sin() * v)
    torch.testing.assert_close(Parameterization("v").eps(level, z, v), phi.sin() * z + phi.cos() * v)


def test_the_flow_is_the_velocity_of_its_path() -> None:
    schedule, x0, eps = SCHEDULES["flow"], data(0, 1), data(1, 1)
    here, there = (schedule.at_ratio(t / (1 - t)) for t in (0.4, 0.4 + 1e-6))
    slope = (q_sample(there, x0, eps) - q_sample(here, x0, eps)) / 1e-6
    torch.testing.assert_close(Parameterization("flow").target(here, x0, eps), slope, atol=1e-6, rtol=0)
    assert here.time == pytest.approx(400)


def test_edm_is_the_papers_preconditioning() -> None:
    """Karras et al. 2022, table 1: D(x) = c_skip x + c_out F(c_in x; c_noise)."""
    sigma, d = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64), 0.7
    level = SCHEDULES["edm"].draw_log_ratio(sigma.log())
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2).sqrt()
    x, output = data(0, 4), data(1, 4)
    parameterization = Parameterization("edm", sigma_data=d)
    expected = append_dims(c_skip, x) * x + append_dims(c_out, x) * output
    torch.testing.assert_close(parameterization.x0(level, x, output), expected)
    torch.testing.assert_close(parameterization.input_scale(level), 1 / (sigma**2 + d**2).sqrt())
    torch.testing.assert_close(level.time, (sigma.log() / 4).float())
    x0, eps = d * data(2, 4), data(3, 4)
    noisy = q_sample(level, x0, eps)
    assert (append_dims(parameterization.input_scale(level), x0) * noisy).std().item() == pytest.approx(1, abs=0.2)
    assert parameterization.target(level, x0, eps).std().item() == pytest.approx(1, abs=0.2)


def test_without_signal_only_eps_is_silent_about_x0() -> None:
    level, x0, eps = NoiseLevel(0.0, 1.0, 999), data(0, 2), data(1, 2)
    for kind in ("x0", "v"):
        parameterization = Parameterization(kind)
        torch.testing.assert_close(parameterization.x0(level, eps, parameterization.target(level, x0, eps)), x0)


def test_x0_and_eps_from_one_another() -> None:
    level = SCHEDULES["linear"].level(torch.tensor([0, 500, 999]))
    x0, eps = data(0, 3), data(1, 3)
    x_t = q_sample(level, x0, eps)
    torch.testing.assert_close(x0_from_eps(level, x_t, eps), x0, atol=1e-9, rtol=0)
    torch.testing.assert_close(eps_from_x0(level, x_t, x0), eps, atol=1e-9, rtol=0)
