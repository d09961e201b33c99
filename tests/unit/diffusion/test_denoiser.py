"""The network as a sampler sees it: its input, its time, and the bounds on its x_0."""

from __future__ import annotations

import pytest
import torch

from diffpipe.diffusion.continuous import EDMScheduleConfig
from diffpipe.diffusion.denoiser import denoiser, network_time, scaled_input, thresholded
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import NoiseLevel

LEVEL = NoiseLevel(0.6, 0.8, 7)


def test_the_network_gets_the_scaled_input_the_time_and_the_level() -> None:
    schedule, seen = EDMScheduleConfig(kind="edm").build(), []
    level = schedule.at_ratio(3.0)
    x = torch.randn(4, 1, 2, 2)

    def network(scaled: torch.Tensor, t: torch.Tensor, at: NoiseLevel) -> torch.Tensor:
        seen.append((scaled, t, at))
        return scaled

    denoiser(network, Parameterization("edm"))(x, level)
    ((scaled, t, at),) = seen
    torch.testing.assert_close(scaled, x / (9 + 0.25) ** 0.5)
    assert torch.equal(scaled, scaled_input(Parameterization("edm"), level, x))
    assert t.dtype == torch.float32
    assert t.tolist() == pytest.approx([level.time] * 4)
    assert at is level
    assert scaled_input(Parameterization("v"), LEVEL, x) is x


def test_a_timestep_stays_an_integer() -> None:
    assert torch.equal(network_time(LEVEL, torch.zeros(3, 1)), torch.tensor([7, 7, 7]))
    assert network_time(LEVEL._replace(time=7.5), torch.zeros(3, 1)).dtype == torch.float32


def test_x0_is_clipped_where_that_is_asked_for() -> None:
    x = torch.full((2, 1, 2, 2), 3.0)
    free = denoiser(lambda x, t, level: x, Parameterization("x0"))
    clipped = denoiser(lambda x, t, level: x, Parameterization("x0"), clip=True)
    assert (free(x, LEVEL).x0 == 3).all()
    assert (clipped(x, LEVEL).x0 == 1).all()


def test_dynamic_thresholding_scales_by_the_quantile_of_each_sample() -> None:
    x = torch.linspace(-2, 2, 101).repeat(2, 1)
    x[1] /= 4
    bounded = thresholded(x, 0.9)
    s = torch.quantile(x[0].abs(), 0.9)
    assert s > 1.5
    torch.testing.assert_close(bounded[0], x[0].clamp(-s, s) / s)
    assert torch.equal(bounded[1], x[1])  # its quantile is below 1: s = 1
    through = denoiser(lambda x, t, level: x, Parameterization("x0"), clip=True, dynamic_threshold=0.9)
    assert torch.equal(through(x, LEVEL).x0, bounded)


def test_the_second_half_of_the_channels_is_the_variance() -> None:
    x = torch.randn(2, 3, 2, 2)
    denoise = denoiser(lambda x, t, level: torch.cat([x, -x], dim=1), Parameterization("x0"), learned_variance=True)
    x0, share = denoise(x, LEVEL)
    assert torch.equal(x0, x)
    assert share is not None
    torch.testing.assert_close(share, (1 - x) / 2)


def test_half_precision_outputs_are_read_in_the_precision_of_x() -> None:
    denoise = denoiser(lambda x, t, level: x.bfloat16(), Parameterization("eps"))
    assert denoise(torch.randn(2, 1), LEVEL).x0.dtype == torch.float32
    assert denoise(torch.randn(2, 1).double(), LEVEL).x0.dtype == torch.float64
