"""The schedules and their spaced timesteps, against diffusers and against the papers' own formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError

from diffpipe.diffusion.schedule import Schedule, ScheduleConfig
from diffpipe.errors import UserError

NAMES: dict[str, Any] = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def timesteps_of(schedule: Schedule) -> torch.Tensor:
    return torch.arange(schedule.T)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [10, 1000])
def test_betas_and_alpha_bar_agree_with_diffusers(kind, steps):
    schedule = Schedule.build(ScheduleConfig(kind=kind, steps=steps))
    theirs = DDPMScheduler(num_train_timesteps=steps, beta_schedule=NAMES[kind])
    t = timesteps_of(schedule)
    torch.testing.assert_close(schedule.betas.float(), theirs.betas, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha_bar(t).float(), theirs.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
def test_coefficients_are_those_of_the_plain_products(kind):
    schedule = Schedule.build(ScheduleConfig(kind=kind))
    t = timesteps_of(schedule)
    products = np.cumprod(1 - schedule.betas.numpy())
    np.testing.assert_allclose(schedule.alpha_bar(t), products, rtol=1e-12)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar(t), 1 - products, rtol=1e-11)
    np.testing.assert_allclose(schedule.alpha(t, t - 1), 1 - schedule.betas, rtol=1e-11)
    np.testing.assert_allclose(schedule.beta(t, t - 1), schedule.betas, rtol=1e-9)
    s = torch.div(t, 3, rounding_mode="floor") - 1
    before = np.concatenate([[1.0], products])[s + 1]
    np.testing.assert_allclose(schedule.alpha(t, s), products / before, rtol=1e-11)


def test_x0_is_noiseless():
    schedule = Schedule.build(ScheduleConfig())
    x0 = torch.tensor([-1])
    assert schedule.alpha_bar(x0).item() == 1
    assert schedule.one_minus_alpha_bar(x0).item() == 0


def test_cosine_follows_its_closed_form_where_beta_is_not_clipped():
    schedule = Schedule.build(ScheduleConfig(kind="cosine", steps=100))
    closed = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    alpha_bar = schedule.alpha_bar(timesteps_of(schedule))[:-1]
    np.testing.assert_allclose(alpha_bar, np.array(closed[1:-1]) / closed[0], rtol=1e-10)
    assert schedule.betas.max().item() == pytest.approx(0.999)


@pytest.mark.parametrize("kind", NAMES)
def test_noise_only_grows_and_nothing_is_degenerate(kind):
    schedule = Schedule.build(ScheduleConfig(kind=kind))
    alpha_bar = schedule.alpha_bar(timesteps_of(schedule))
    assert (alpha_bar.diff() < 0).all()
    assert alpha_bar[-1] > 0
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps_agree_with_diffusers_at_every_number_of_steps(spacing):
    schedule = Schedule.build(ScheduleConfig(steps=1000))
    theirs = DDPMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    for steps in range(1, 1001):
        theirs.set_timesteps(steps)
        ours = schedule.timesteps(steps, spacing)
        assert len(ours) == steps
        assert all(type(t) is int for t in ours)
        assert ours == theirs.timesteps.tolist()[:steps], steps  # at some numbers of steps theirs has one more, -1


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("total", [2, 7, 100])
def test_spaced_timesteps_descend_within_range(spacing, total):
    schedule = Schedule.build(ScheduleConfig(steps=total))
    for steps in range(1, total + 1):
        timesteps = schedule.timesteps(steps, spacing)
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert 0 <= timesteps[-1] <= timesteps[0] < total
        assert spacing != "trailing" or timesteps[0] == total - 1
    assert timesteps == list(reversed(range(total)))


@pytest.mark.parametrize("steps", [0, 11])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_a_user_error(steps):
    with pytest.raises(UserError, match="1 to 10 steps"):
        Schedule.build(ScheduleConfig(steps=10)).timesteps(steps)


@pytest.mark.parametrize(
    "bad",
    [{"steps": 1}, {"kind": "sigmoid"}, {"beta_start": 0}, {"beta_end": 1}, {"beta_start": 0.03}, {"beta_max": 0.9}],
)
def test_a_schedule_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValidationError):
        ScheduleConfig.model_validate(bad)


def test_moving_to_a_device_moves_every_table():
    moved = Schedule.build(ScheduleConfig()).to("meta")
    assert moved.betas.is_meta
    assert moved.log_alpha_bar.is_meta
