"""The states of a sampler's chain: which evaluations they are, and what is shown of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffpipe.diffusion.parameterization import Prediction
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.sampler_config import SAMPLERS, SamplerConfig
from diffpipe.diffusion.samplers import sample
from diffpipe.diffusion.trajectory import chain_evaluations, evenly, sample_states, watched
from diffpipe.diffusion.visited_levels import visited_levels
from diffpipe.rng import KeyedRNG
from tests.support.ground_truth import CORRELATED, PAIRS, exact_denoiser, schedule_of

RNG = KeyedRNG(0, torch.arange(4))


def settings(kind: str, steps: int) -> SamplerConfig:
    return SamplerConfig(kind=kind, steps=steps, clip=False, churn=4.0 if kind == "edm" else 0.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
def test_the_states_are_those_of_the_sampling_with_the_exact_prediction_from_each(
    sampler: str, schedule: str, prediction: Prediction
) -> None:
    if sampler == "edm" and schedule in ("flow", "zero_terminal"):
        return  # refused: it starts at a finite sigma
    levels, config = schedule_of(schedule), settings(sampler, 12)
    denoise = exact_denoiser(CORRELATED, prediction)
    states = sample_states(denoise, levels, config, RNG, (3,), lambda x: x, 6)
    assert torch.equal(states[-1].x0, sample(denoise, levels, config, RNG, (3,)))
    assert len(states) == 6
    ratios = [state.ratio for state in states]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == 0
    assert ratios[0] == visited_levels(levels, config)[0].ratio
    if sampler != "edm":  # it adds noise first
        torch.testing.assert_close(states[0].x_t, RNG.normal("start", (3,)), rtol=1e-3, atol=1e-3)
    for state in states[:-1]:
        scale = 1 if math.isinf(state.ratio) else math.hypot(1, state.ratio)
        alpha, sigma = (0.0, 1.0) if math.isinf(state.ratio) else (1 / scale, state.ratio / scale)
        x0 = CORRELATED.x0(state.x_t.double(), NoiseLevel(alpha, sigma, 0))
        torch.testing.assert_close(state.x0.double(), x0, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("kind", "chain"), [("ddim", [0, 1, 2, 3]), ("heun", [0, 2, 4, 6]), ("edm", [0, 2, 4, 6])])
def test_trial_points_are_no_states_of_the_chain(kind: str, chain: list[int]) -> None:
    levels = visited_levels(schedule_of("edm"), settings(kind, 4))
    assert chain_evaluations(levels, 9) == chain
    assert chain_evaluations(levels, 2) == [chain[0], chain[-1]]
    assert chain_evaluations(levels, 1) == chain[:1]


def test_even_choices_keep_both_ends() -> None:
    assert evenly(50, 9) == [0, 6, 12, 18, 24, 31, 37, 43, 49]
    assert evenly(3, 9) == [0, 1, 2]
    assert evenly(1, 9) == [0]


def test_watching_changes_nothing_and_shows_only_the_chosen_evaluations() -> None:
    schedule, config = schedule_of("linear"), settings("ddim", 5)
    denoise, shown = exact_denoiser(CORRELATED, "eps"), []

    def show(level: NoiseLevel, x_t: Tensor, x0: Tensor) -> None:
        shown.append((level, x_t, x0))

    sampled = sample(watched(denoise, {0, 4}, show), schedule, config, RNG, (3,))
    assert torch.equal(sampled, sample(denoise, schedule, config, RNG, (3,)))
    levels = visited_levels(schedule, config)
    assert [level for level, _, _ in shown] == [levels[0], levels[4]]
    assert all(torch.equal(x0, denoise(x_t, level).x0) for level, x_t, x0 in shown)
