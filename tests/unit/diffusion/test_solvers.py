"""The solvers of higher order, trajectory by trajectory against diffusers, in float64."""

from __future__ import annotations

import functools
import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.denoiser import denoiser
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import CLEAN
from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.diffusion.samplers import find
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig, Schedule

SHAPE = (2, 3, 4, 4)
NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@functools.cache
def gaussian(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x_t: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """Something that answers as a network does: it finds most of the noise where there is much, and is not linear."""
    time = torch.as_tensor(t, dtype=x_t.dtype).reshape(-1, 1, 1, 1) / 1000
    return (time + 0.01).sqrt().clamp(max=1) * x_t + 0.1 * torch.sin(3 * x_t + 5 * time)


def trajectory(kind: str, schedule: Schedule, steps: int, prediction: Any = "eps", **settings: Any) -> torch.Tensor:
    """Every x_t that the network saw, then x_0."""
    config = SamplerConfig.model_validate({"kind": kind, "steps": steps, "clip": False, **settings})
    seen: list[torch.Tensor] = []

    def model(x: torch.Tensor, t: torch.Tensor, level: object) -> torch.Tensor:
        seen.append(x)
        return network(x, t)

    start = schedule.start_std * gaussian(99)
    x0 = find(kind)(denoiser(model, Parameterization(prediction)), schedule, start, config, gaussian)
    return torch.stack([*seen, x0])


def in_double(theirs: Any, schedule: DiscreteSchedule, steps: int) -> Any:
    """diffusers' scheduler with its formulas as they are, at our levels in float64."""
    with warnings.catch_warnings():  # numpy's, about how it asks torch for an array
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs.set_timesteps(steps)
    levels = schedule.levels(steps)
    theirs.timesteps = torch.tensor([level.time for level in levels])
    theirs.sigmas = torch.tensor([*(level.ratio for level in levels), 0.0], dtype=torch.float64)
    return theirs


def their_trajectory(theirs: Any, start: torch.Tensor, predict: Any = network, **kwargs: Any) -> torch.Tensor:
    xs = [start]
    for i, t in enumerate(theirs.timesteps.tolist()):
        noise = {"variance_noise": gaussian(i)} if "sde" in theirs.config.get("algorithm_type", "") else {}
        step: Any = theirs.step(predict(xs[-1], t), theirs.timesteps[i], xs[-1], **noise, **kwargs)
        xs.append(step.prev_sample)
    return torch.stack(xs)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5 of the largest number, and mostly far better."""
    assert ours.dtype == theirs.dtype == torch.float64
    scale = theirs.abs().amax(dim=(1, 2, 3, 4))
    error = (ours - theirs).abs().amax(dim=(1, 2, 3, 4))
    assert (error <= 1e-5 * scale).all(), (error / scale).tolist()


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize(("sampler", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
def test_dpmpp_trajectories_agree_with_diffusers(kind: str, steps: int, sampler: str, algorithm: Any) -> None:
    schedule = DiscreteScheduleConfig.model_validate({"kind": kind}).build()
    schedule_name: Any = NAMES[kind]
    theirs = DPMSolverMultistepScheduler(
        beta_schedule=schedule_name,
        algorithm_type=algorithm,
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs = in_double(theirs, schedule, steps)
    assert_close(trajectory(sampler, schedule, steps), their_trajectory(theirs, gaussian(99)))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20])
def test_unipc_trajectories_agree_with_diffusers(kind: str, steps: int) -> None:
    schedule = DiscreteScheduleConfig.model_validate({"kind": kind}).build()
    schedule_name: Any = NAMES[kind]
    theirs = UniPCMultistepScheduler(
        beta_schedule=schedule_name,
        solver_order=2,
        solver_type="bh2",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs = in_double(theirs, schedule, steps)
    ours = trajectory("unipc", schedule, steps)
    xs = their_trajectory(theirs, gaussian(99))
    # What the network sees of ours is the uncorrected prediction, and so is theirs.
    assert_close(ours, xs)


@pytest.mark.parametrize("steps", [2, 18])
def test_heun_is_algorithm_1_of_karras(steps: int) -> None:
    """Against a transcription of the paper's pseudocode, in sigma."""
    schedule = EDMScheduleConfig(kind="edm").build()
    x0 = trajectory("heun", schedule, steps, "edm")[-1]
    parameterization = Parameterization("edm")

    def D(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = schedule.at_ratio(sigma)
        time = torch.full((len(x),), level.time, dtype=torch.float32)
        return parameterization.x0(level, x, network(x / math.sqrt(sigma**2 + 0.25), time))

    i = np.arange(steps)
    t = [*((80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    x = t[0] * gaussian(99)
    for here, there in pairwise(t):
        d = (x - D(x, here)) / here
        euler = x + (there - here) * d
        x = euler if there == 0 else x + (there - here) * (d / 2 + (euler - D(euler, there)) / there / 2)
    torch.testing.assert_close(x0, x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bounds", [{}, {"churn_min": 0.05, "churn_max": 50.0}])
def test_edm_is_algorithm_2_of_karras(bounds: dict[str, float]) -> None:
    schedule, steps, churn, noise = EDMScheduleConfig(kind="edm").build(), 12, 4.0, 1.003
    x0 = trajectory("edm", schedule, steps, "edm", churn=churn, churn_noise=noise, **bounds)[-1]
    parameterization = Parameterization("edm")

    def D(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = schedule.at_ratio(sigma)
        time = torch.full((len(x),), level.time, dtype=torch.float32)
        return parameterization.x0(level, x, network(x / math.sqrt(sigma**2 + 0.25), time))

    t = [*(level.sigma for level in schedule.levels(steps)), 0.0]
    x = t[0] * gaussian(99)
    for i, (here, there) in enumerate(pairwise(t)):
        within = bounds.get("churn_min", 0) <= here <= bounds.get("churn_max", math.inf)
        gamma = min(churn / steps, math.sqrt(2) - 1) if within else 0.0
        hat = here + gamma * here
        x_hat = x + math.sqrt(hat**2 - here**2) * noise * gaussian(i)
        d = (x_hat - D(x_hat, hat)) / hat
        x = x_hat + (there - hat) * d
        if there:
            x = x_hat + (there - hat) * (d / 2 + (x - D(x, there)) / there / 2)
    torch.testing.assert_close(x0, x, rtol=1e-6, atol=1e-8)


def test_without_churn_edm_is_heun() -> None:
    for schedule in (EDMScheduleConfig(kind="edm").build(), DiscreteScheduleConfig().build()):
        torch.testing.assert_close(trajectory("edm", schedule, 6), trajectory("heun", schedule, 6))


def test_heun_on_a_flow_averages_the_velocities() -> None:
    schedule, x = FlowScheduleConfig(kind="flow").build(), gaussian(99)
    t = [1.0, 0.75, 0.5, 0.25, 0.0]
    for here, there in pairwise(t):
        v = network(x, 1000 * here)
        euler = x + (there - here) * v
        x = x + (there - here) * (v + network(euler, 1000 * there)) / 2 if there else euler
    torch.testing.assert_close(trajectory("heun", schedule, 4, "flow")[-1], x, rtol=1e-9, atol=1e-9)


def test_heun_on_a_circle_averages_v() -> None:
    """Against a transcription in the angle of x_t = cos(phi) x_0 + sin(phi) eps, whose derivative is v."""
    schedule, x = DiscreteScheduleConfig(kind="cosine").build(), gaussian(99)
    for here, there in pairwise([*schedule.levels(4), CLEAN]):
        width = math.asin(there.sigma) - math.asin(here.sigma)
        v = network(x, here.time)
        euler = x + width * v
        x = euler if there is CLEAN else x + width * (v + network(euler, there.time)) / 2
    torch.testing.assert_close(trajectory("heun", schedule, 4, "v")[-1], x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "ddim", "heun"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pure_noise_at_the_start_makes_finite_images(kind: str, steps: int) -> None:
    """alpha = 0 there, and log(alpha / sigma) is -infinite: of a flow, and of a schedule without terminal signal."""
    silent = DiscreteScheduleConfig(zero_terminal_snr=True).build()
    for schedule, prediction in ((FlowScheduleConfig(kind="flow").build(), "flow"), (silent, "v")):
        assert trajectory(kind, schedule, steps, prediction).isfinite().all()


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize("kind", ["dpmpp_2m", "dpmpp_2m_sde", "ancestral"])
def test_on_edm_levels_they_are_closed_forms_in_sigma(kind: str, steps: int) -> None:
    """In sigma, exp(-h) is the ratio of two levels: no logarithm is left (Lu et al. 2022b; Ho et al. 2020, eq. 7)."""
    schedule, parameterization = EDMScheduleConfig(kind="edm").build(), Parameterization("edm")
    levels = schedule.levels(steps)
    sigmas = [*(level.sigma for level in levels), 0.0]
    x, before = sigmas[0] * gaussian(99), None
    for i, (level, (sigma, lower)) in enumerate(zip(levels, pairwise(sigmas), strict=True)):
        time = torch.full((len(x),), level.time, dtype=torch.float32)
        x0 = parameterization.x0(level, x, network(x / math.sqrt(sigma**2 + 0.25), time))
        share = lower / sigma if kind == "dpmpp_2m" else (lower / sigma) ** 2
        target = x0
        if before is not None and lower and kind != "ancestral":
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / lower)
            target = x0 + (x0 - before) / (2 * r)
        added = 0.0 if kind == "dpmpp_2m" else lower * math.sqrt(1 - (lower / sigma) ** 2)
        x, before = share * x + (1 - share) * target + added * gaussian(i), x0
    torch.testing.assert_close(trajectory(kind, schedule, steps, "edm")[-1], x, rtol=1e-7, atol=1e-9)
