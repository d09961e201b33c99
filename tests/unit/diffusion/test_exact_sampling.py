"""Samplers with the exact denoiser of known data: the right mean and covariance, and the right order of convergence."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe.diffusion.parameterization import Prediction
from diffpipe.diffusion.sampler_config import SAMPLERS, SamplerConfig
from diffpipe.diffusion.samplers import check_sampler, find
from diffpipe.diffusion.schedule import Schedule, Spacing
from tests.support.ground_truth import CORRELATED, MODES, PAIRS, Mixture, exact_denoiser, schedule_of

N = 2000
STEPS = {"ancestral": 250, "ddim": 100, "euler": 100, "dpmpp_2m_sde": 80, "edm": 50}  # others: 40
CASES = [(sampler, {}) for sampler in SAMPLERS if sampler != "edm"]
CASES += [("edm", {"churn": 20.0}), ("ddim", {"eta": 1.0, "steps": 250}), ("ancestral", {"variance": "large"})]
SPACING: dict[str, Spacing] = {"linear": "log_snr", "edm": "trailing", "flow": "trailing"}
ORDERS = {"ddim": (0.9, 1.1), "euler": (0.9, 1.1), "heun": (1.9, 2.25), "dpmpp_2m": (1.85, 2.2), "unipc": (2.3, 3.3)}


def draw(
    data: Mixture, schedule: Schedule, prediction: Prediction, start: Tensor, kind: str, steps: int, **settings: Any
) -> Tensor:
    """x_0 from x_T, float64."""
    config = SamplerConfig.model_validate({"kind": kind, "steps": steps, "clip": False, **settings})
    check_sampler(schedule, config)
    rng = torch.Generator().manual_seed(1)

    def noise(i: int) -> Tensor:
        del i
        return torch.randn(start.shape, generator=rng, dtype=torch.float64)

    return find(kind)(exact_denoiser(data, prediction), schedule, start, config, noise)


def starts(n: int, data: Mixture, schedule: Schedule) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return schedule.start_std * torch.randn(n, data.means.shape[1], generator=rng, dtype=torch.float64)


def possible(sampler: str, kind: str) -> bool:
    """Whether the sampler can start at this schedule's noisiest level; test_samplers has the refusals."""
    return sampler != "edm" or kind not in ("flow", "zero_terminal")


@pytest.mark.parametrize(
    ("sampler", "settings", "kind", "prediction"),
    [(*case, *pair) for case in CASES for pair in PAIRS if possible(case[0], pair[0])],
)
def test_samples_have_the_mean_and_covariance_of_the_data(
    sampler: str, settings: dict[str, Any], kind: str, prediction: Prediction
) -> None:
    schedule = schedule_of(kind)
    settings = {"steps": STEPS.get(sampler, 40), **settings}
    data = MODES if PAIRS.index((kind, prediction)) % 2 else CORRELATED
    x = draw(data, schedule, prediction, starts(N, data, schedule), sampler, **settings)
    offsets = x - data.mean
    products = torch.einsum("bi,bj->bij", offsets, offsets)
    for values, true in ((x, data.mean), (products, data.covariance)):
        z = (values.mean(0) - true) / (values.std(0) / math.sqrt(N))
        assert z.abs().max() < 4.5, z.tolist()


def smooth(kind: str) -> Schedule:
    """A schedule whose last step, to x_0, starts at sigma 1e-4, where its own error is below 1e-7."""
    settings = {"linear": {"beta_start": 1e-8}, "edm": {"sigma_min": 1e-4, "sigma_max": 20.0}}
    return schedule_of(kind, **settings.get(kind, {}))


@functools.cache
def probability_flow(kind: str, prediction: Prediction, mixture: bool) -> tuple[Tensor, Tensor]:
    """x_T and the x_0 that the probability flow carries it to."""
    schedule, data = smooth(kind), MODES if mixture else CORRELATED
    start = starts(32, data, schedule)
    if mixture:
        return start, draw(data, schedule, prediction, start, "heun", 400, spacing=SPACING[kind])
    return start, data.flow(start, schedule.levels(2, SPACING[kind])[0])


@pytest.mark.parametrize(
    ("kind", "most"), [("linear", 0.03), ("cosine", 0.01), ("sigmoid", 0.02), ("zero_terminal", 0.03)]
)
def test_heun_is_accurate_in_twenty_trailing_steps_from_any_first_sigma(kind: str, most: float) -> None:
    """From sigma / alpha of 150 (linear), 20,000 (cosine), 730 (sigmoid) or infinity. Steps in that are off by 0.7."""
    schedule = schedule_of(kind)
    start = starts(500, CORRELATED, schedule)
    x = draw(CORRELATED, schedule, "v", start, "heun", 20)
    exact = CORRELATED.flow(start, schedule.levels(1)[0])
    assert (x - exact).square().mean().sqrt() < most


# Even in t, as a flow's levels are, steps in log SNR stay long at both ends: dpmpp_2m and unipc are still below
# their order at these numbers of steps.
@pytest.mark.parametrize(
    ("sampler", "kind", "prediction"),
    [(sampler, "linear", "eps") for sampler in ORDERS]
    + [(sampler, "edm", "edm") for sampler in ORDERS]
    + [(sampler, "flow", "flow") for sampler in ("ddim", "euler", "heun")],
)
@pytest.mark.parametrize("data", [CORRELATED, MODES], ids=["gaussian", "mixture"])
def test_solvers_converge_to_the_probability_flow_at_their_order(
    sampler: str, kind: str, prediction: Prediction, data: Mixture
) -> None:
    """The error against the closed form, or for a mixture against Heun's method with 400 steps."""
    start, exact = probability_flow(kind, prediction, data is MODES)
    errors = []
    for steps in (40, 80, 160):
        x = draw(data, smooth(kind), prediction, start, sampler, steps, spacing=SPACING[kind])
        errors.append((x - exact).square().mean().sqrt().item())
    slope = math.log2(errors[0] / errors[-1]) / 2
    low, high = ORDERS[sampler]
    assert low < slope < high, (errors, slope)
