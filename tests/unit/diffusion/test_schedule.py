"""The schedules and their spaced timesteps, against diffusers and against the papers' own formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError

from diffpipe.diffusion.process import step_variance
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.errors import UserError

NAMES: dict[str, Any] = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def unscaled(kind: Any, steps: int) -> DiscreteScheduleConfig:
    """The config whose betas are from 1e-4 to 0.02, whatever the number of timesteps."""
    return DiscreteScheduleConfig(kind=kind, steps=steps, beta_start=1e-7 * steps, beta_end=2e-5 * steps)


def timesteps_of(schedule: DiscreteSchedule) -> torch.Tensor:
    return torch.arange(schedule.T)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [10, 1000])
def test_betas_and_alpha_bar_agree_with_diffusers(kind, steps):
    schedule = DiscreteSchedule.build(unscaled(kind, steps))
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_schedule=NAMES[kind])
    t = timesteps_of(schedule)
    torch.testing.assert_close(schedule.betas.float(), theirs.betas, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha_bar(t).float(), theirs.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
def test_coefficients_are_those_of_the_plain_products(kind):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    t = timesteps_of(schedule)
    products = np.cumprod(1 - schedule.betas.numpy())
    np.testing.assert_allclose(schedule.alpha_bar(t), products, rtol=1e-12)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar(t), 1 - products, rtol=1e-11)
    level, lower = schedule.level(t), schedule.level(t - 1)
    np.testing.assert_allclose((level.alpha / lower.alpha) ** 2, 1 - schedule.betas, rtol=1e-11)
    np.testing.assert_allclose(step_variance(level, lower), schedule.betas, rtol=1e-9)
    s = torch.div(t, 3, rounding_mode="floor") - 1
    before = np.concatenate([[1.0], products])[s + 1]
    np.testing.assert_allclose((level.alpha / schedule.level(s).alpha) ** 2, products / before, rtol=1e-11)


def test_x0_is_noiseless():
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig())
    x0 = torch.tensor([-1])
    assert schedule.alpha_bar(x0).item() == 1
    assert schedule.one_minus_alpha_bar(x0).item() == 0


def test_cosine_follows_its_closed_form_where_beta_is_not_clipped():
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind="cosine", steps=100))
    closed = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    alpha_bar = schedule.alpha_bar(timesteps_of(schedule))[:-1]
    np.testing.assert_allclose(alpha_bar, np.array(closed[1:-1]) / closed[0], rtol=1e-10)
    assert schedule.betas.max().item() == pytest.approx(0.999)


@pytest.mark.parametrize("kind", NAMES)
def test_noise_only_grows_and_nothing_is_degenerate(kind):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    alpha_bar = schedule.alpha_bar(timesteps_of(schedule))
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] > 0
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps_agree_with_diffusers_at_every_number_of_steps(spacing):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=1000))
    theirs = DDPMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    for steps in range(2 if spacing == "linspace" else 1, 1001):  # theirs has the least noise for 1 step of linspace
        theirs.set_timesteps(steps)
        ours = schedule.timesteps(steps, spacing)
        assert len(ours) == steps
        assert all(type(t) is int for t in ours)
        assert ours == theirs.timesteps.tolist()[:steps], steps  # at some numbers of steps theirs has one more, -1


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("total", [2, 7, 100])
def test_spaced_timesteps_descend_within_range(spacing, total):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=total))
    for steps in range(1, total + 1):
        timesteps = schedule.timesteps(steps, spacing)
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert 0 <= timesteps[-1] <= timesteps[0] < total
        assert spacing == "leading" or timesteps[0] == total - 1
    assert timesteps == list(reversed(range(total)))


@pytest.mark.parametrize("steps", [0, 11])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_a_user_error(steps):
    with pytest.raises(UserError, match="1 to 10 steps"):
        DiscreteSchedule.build(DiscreteScheduleConfig(steps=10)).timesteps(steps)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 1},
        {"steps": 10**9},
        {"kind": "tanh"},
        {"beta_start": 0},
        {"beta_end": 1},
        {"beta_start": 0.03},
        {"beta_max": 0.9},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValidationError):
        DiscreteScheduleConfig.model_validate(bad)


def test_moving_to_a_device_moves_every_table():
    moved = DiscreteSchedule.build(DiscreteScheduleConfig()).to("meta")
    assert moved.betas.is_meta
    assert moved.log_alpha_bar.is_meta


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [20, 100, 1000, 4000])
def test_the_noise_at_the_end_does_not_depend_on_the_number_of_timesteps(kind, steps):
    """The betas of Ho et al. 2020 are for 1000 timesteps; unscaled, 100 would keep 36 % of the variance in x_T."""
    schedule = DiscreteScheduleConfig(kind=kind, steps=steps).build()
    assert schedule.alpha_bar(torch.tensor([steps - 1])).item() < 0.01
    thousand = DiscreteScheduleConfig(kind=kind).build()
    if steps > 1000:
        ratio = schedule.log_alpha_bar[-1] / thousand.log_alpha_bar[-1]
        assert kind in ("cosine", "sigmoid") or ratio.item() == pytest.approx(1, abs=0.02)


def test_betas_are_scaled_by_the_number_of_timesteps():
    schedule = DiscreteScheduleConfig(steps=100).build()
    torch.testing.assert_close(schedule.betas, torch.linspace(1e-3, 0.2, 100, dtype=torch.float64))


def test_signal_in_the_noise_that_sampling_starts_from_is_a_user_error():
    with pytest.raises(UserError, match=r"leaves 36\.\d+% of the image's variance in x_T.*zero_terminal_snr=true"):
        unscaled("linear", 100).build()


@pytest.mark.parametrize("kind", NAMES)
def test_zero_terminal_snr_agrees_with_diffusers(kind):
    """Lin et al. 2023, algorithm 1."""
    ours = DiscreteScheduleConfig(kind=kind, zero_terminal_snr=True).build()
    theirs = DDPMScheduler(beta_schedule=NAMES[kind], rescale_betas_zero_snr=True)
    t = timesteps_of(ours)
    torch.testing.assert_close(ours.alpha_bar(t).float(), theirs.alphas_cumprod, atol=2e-5, rtol=0)
    assert ours.alpha_bar(t[-1:]).item() == 0
    assert ours.betas[-1].item() == 1
    last = ours.levels(10)[0]
    assert (last.alpha, last.sigma, last.time) == (0.0, 1.0, 999)


def test_sigmoid_is_that_of_jabri():
    """gamma(t) of Jabri et al. 2022, algorithm 1, at start -3, end 3, tau 1, where beta is not clipped."""
    schedule = DiscreteScheduleConfig(kind="sigmoid").build()
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    for t in (1, 250, 500, 900):
        gamma = (high - 1 / (1 + math.exp(-(t / 1000 * 6 - 3)))) / (high - low)
        assert schedule.alpha_bar(torch.tensor([t - 1])).item() == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize("spacing", ["karras", "log_snr"])
def test_sigma_spaced_levels_are_even_in_their_own_scale(spacing):
    schedule = DiscreteScheduleConfig(kind="cosine", steps=100).build()
    levels = schedule.levels(12, spacing)
    ratios = np.array([level.ratio for level in levels])
    even = ratios ** (1 / 7) if spacing == "karras" else np.log(ratios)
    np.testing.assert_allclose(np.diff(even), np.diff(even).mean(), rtol=1e-6)
    assert [level.alpha**2 + level.sigma**2 for level in levels] == pytest.approx([1] * 12)
    assert levels[0].time == pytest.approx(99)
    assert levels[-1].time == pytest.approx(0, abs=1e-6)
    for level in levels[1:-1]:  # between the timesteps whose noise encloses theirs
        below, above = (schedule.level(torch.tensor([t])).ratio.item() for t in (int(level.time), int(level.time) + 1))
        assert below <= level.ratio <= above


def test_levels_that_end_without_signal_have_no_sigma_spacing():
    schedule = DiscreteScheduleConfig(zero_terminal_snr=True).build()
    with pytest.raises(UserError, match=r"spacing=karras starts at a finite noise level.*use trailing"):
        schedule.levels(10, "karras")


def test_a_drawn_log_ratio_takes_the_nearest_timestep():
    schedule = DiscreteScheduleConfig(kind="cosine", steps=50).build()
    log_ratio = schedule.level(timesteps_of(schedule)).ratio.log()
    assert torch.equal(schedule.draw_log_ratio(log_ratio + 1e-6).time, timesteps_of(schedule))
    assert schedule.draw_log_ratio(torch.tensor([-99.0, 99.0], dtype=torch.float64)).time.tolist() == [0, 49]
    torch.testing.assert_close(schedule.position(schedule.chain()), torch.arange(50).double() / 50)
