"""The large steps of the denoising diffusion GAN, against the paper's code and the SDE."""

from __future__ import annotations

import pytest
import torch

from diffpipe.diffusion.process import step_variance
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.stages.large_steps import NamedLevels, SDEStepsConfig, TimestepsConfig

LEVELS = DiscreteSchedule.build(DiscreteScheduleConfig(kind="cosine"))


@pytest.mark.parametrize(("steps", "start"), [(1, 0.001), (4, 0.001), (4, 0.3), (4, 0.0)])
def test_the_large_steps_from_a_later_start_are_those_of_the_papers_code(steps: int, start: float) -> None:
    # Its variance at time s is 1 - exp(-s^2 (beta_max - beta_min) / 2 - s beta_min), at s = start + (1 - start) t / T.
    s = start + (1 - start) * torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.exp(-(s**2) * 19.9 / 2 - s * 0.1)
    schedule = SDEStepsConfig(steps=steps, start=start).build(LEVELS)
    torch.testing.assert_close(schedule.betas, 1 - alpha_bar[1:] / alpha_bar[:-1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_large_steps_are_the_sde_at_equal_times(steps: int) -> None:
    # The variance-preserving SDE has log alpha_bar(s) = -integral of beta from 0 to s (Song et al. 2021, eq. 33).
    schedule = SDEStepsConfig(steps=steps, beta_min=0.1, beta_max=20.0).build(LEVELS)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    integral = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(0.1 + 19.9 * grid, grid)])
    expected = torch.exp(-integral[:: 200_000 // steps][1:])
    torch.testing.assert_close(schedule.alpha_bar(torch.arange(steps)), expected, rtol=1e-6, atol=0)
    assert steps == schedule.T
    torch.testing.assert_close((1 - schedule.betas).log().cumsum(0), schedule.log_alpha_bar[1:], rtol=1e-9, atol=1e-9)


def test_steps_between_timesteps_are_those_of_the_schedule_that_they_are_of() -> None:
    steps = TimestepsConfig(kind="timesteps", timesteps=(129, 379, 679, 949)).build(LEVELS)
    torch.testing.assert_close(
        steps.alpha_bar(torch.arange(-1, 4)), LEVELS.alpha_bar(torch.tensor([-1, 129, 379, 679, 949]))
    )
    between = step_variance(LEVELS.level(torch.tensor([379])), LEVELS.level(torch.tensor([129])))
    torch.testing.assert_close(steps.betas[1:2], between)
    two = TimestepsConfig(kind="timesteps", timesteps=(129, 949)).build(LEVELS)
    assert NamedLevels.of(two, LEVELS).embedding_timesteps.tolist() == [0, 129, 949]
