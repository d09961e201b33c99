"""EDM's sigmas and rectified flow: levels, draws and ends, against the papers and diffusers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.errors import UserError

EDM, FLOW = EDMScheduleConfig(kind="edm").build(), FlowScheduleConfig(kind="flow").build()


def test_edm_visits_the_papers_sigmas() -> None:
    theirs: Any = EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    theirs.set_timesteps(18)
    levels = EDM.levels(18)
    np.testing.assert_allclose([level.sigma for level in levels], theirs.sigmas[:-1], rtol=1e-5)
    np.testing.assert_allclose([level.time for level in levels], theirs.timesteps, rtol=1e-4, atol=1e-5)
    assert all(level.alpha == 1 for level in levels)
    assert EDM.start_std == 80
    assert [level.sigma for level in EDM.levels(18, "karras")] == [level.sigma for level in levels]
    ratios = np.array([level.sigma for level in EDM.levels(18, "log_snr")])
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], (0.002 / 80) ** (1 / 17), rtol=1e-9)


@pytest.mark.parametrize("shift", [0.01, 1.0, 3.0, 100.0])
def test_flow_visits_the_shifted_times_of_diffusers(shift: float) -> None:
    theirs: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = FlowScheduleConfig(kind="flow", shift=shift).build()
    steps = 10
    theirs.set_timesteps(sigmas=(np.arange(steps, 0, -1) / steps).tolist())
    levels = schedule.levels(steps)
    np.testing.assert_allclose([level.sigma for level in levels], theirs.sigmas[:-1], rtol=1e-6)
    np.testing.assert_allclose([level.time for level in levels], theirs.timesteps, rtol=1e-6)
    assert [level.alpha + level.sigma for level in levels] == pytest.approx([1] * steps)
    assert (levels[0].alpha, levels[0].sigma) == (0, 1)


def test_uniform_words_fill_the_schedules_own_time() -> None:
    words = torch.arange(0, 2**32, 2**22)
    flow = FLOW.draw_uniform(words)
    torch.testing.assert_close(flow.sigma, (words.double() + 0.5) / 2**32)
    torch.testing.assert_close(FLOW.position(flow), flow.sigma)
    edm = EDM.draw_uniform(words)
    assert edm.sigma.min().item() == pytest.approx(0.002, rel=1e-6)
    assert edm.sigma.max().item() == pytest.approx(80, rel=0.01)
    torch.testing.assert_close(EDM.position(edm), (words.double() + 0.5) / 2**32, atol=1e-9, rtol=0)


def test_a_normal_log_ratio_is_edms_draw_and_flows_logit_normal() -> None:
    z = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(EDM.draw_log_ratio(-1.2 + 1.2 * z).sigma.log(), -1.2 + 1.2 * z)
    torch.testing.assert_close(torch.logit(FLOW.draw_log_ratio(z).sigma), z)
    shifted = FlowScheduleConfig(kind="flow", shift=3.0).build().draw_log_ratio(z).sigma
    t = torch.sigmoid(z)
    torch.testing.assert_close(shifted, 3 * t / (1 + 2 * t))


def test_every_ratio_has_its_level() -> None:
    for schedule in (EDM, FLOW):
        for ratio in (0.01, 1.0, 30.0):
            assert schedule.at_ratio(ratio).ratio == pytest.approx(ratio)
    assert FLOW.at_ratio(math.inf)[:2] == (0, 1)


def test_the_bounds_chain_runs_from_below_a_levels_width_to_nearly_pure_noise() -> None:
    for schedule in (EDM, FLOW):
        ratio = schedule.chain().ratio
        assert (ratio.diff() > 0).all()
        assert ratio[0].item() == pytest.approx(0.002)
        assert ratio[-1].item() > 79.9


def test_ends_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma_min is 2.0, not below sigma_max 1.0"):
        EDMScheduleConfig(kind="edm", sigma_min=2.0, sigma_max=1.0)
    for rho in (0.005, 1e17):
        with pytest.raises(ValueError, match=r"rho\s+Input should be (greater|less) than or equal to"):
            EDMScheduleConfig(kind="edm", rho=rho)
    for shift in (1e-17, 1e17):
        with pytest.raises(ValueError, match=r"shift\s+Input should be (greater|less) than or equal to"):
            FlowScheduleConfig(kind="flow", shift=shift)
    with pytest.raises(UserError, match=r"sigma_max 4.0 leaves signal .* make it at least 5, ten times sigma_data"):
        EDMScheduleConfig(kind="edm", sigma_max=4.0).build()
    with pytest.raises(UserError, match=r"spacing=linspace is not for stage.schedule.kind=edm; use trailing, karras"):
        EDM.levels(5, "linspace")
    with pytest.raises(UserError, match=r"spacing=karras is not for stage.schedule.kind=flow; use trailing"):
        FLOW.levels(5, "karras")
