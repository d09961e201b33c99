"""The draws of noise levels: their distributions, their keys, and the low discrepancy of neighbours."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy import stats

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.diffusion.timesteps import TimestepsConfig, draw_level
from diffpipe.rng import KeyedRNG

SCHEDULES: dict[str, Any] = {
    "linear": DiscreteScheduleConfig().build(),
    "edm": EDMScheduleConfig(kind="edm").build(),
    "flow": FlowScheduleConfig(kind="flow").build(),
}


def draw(schedule: str, n: int, first: int = 0, seed: int = 0, **settings: Any) -> Any:
    config = TimestepsConfig.model_validate(settings)
    return draw_level(SCHEDULES[schedule], config, schedule, KeyedRNG(seed, torch.arange(first, first + n)))


def test_timesteps_are_uniform_over_the_whole_schedule() -> None:
    schedule = DiscreteScheduleConfig(steps=10).build()
    t = draw_level(schedule, TimestepsConfig(), "linear", KeyedRNG(0, torch.arange(20_000))).time
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 5 * (20_000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("low_discrepancy", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("edm", {}, stats.norm(-1.2, 1.2)),
        ("flow", {}, stats.norm(0, 1)),
        ("flow", {"mean": 0.5, "std": 2.0}, stats.norm(0.5, 2.0)),
        ("edm", {"mean": -0.4, "std": 1.0}, stats.norm(-0.4, 1.0)),
    ],
)
def test_the_log_of_sigma_over_alpha_is_normal(kind, settings, expected, low_discrepancy) -> None:
    ratio = draw(kind, 20_000, seed=1, low_discrepancy=low_discrepancy, **settings).ratio.log().numpy()
    assert stats.kstest(ratio, expected.cdf).statistic < 1.95 / 20_000**0.5  # one in a thousand


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_a_draw_depends_on_the_seed_and_its_position_alone(kind, low_discrepancy) -> None:
    whole = draw(kind, 12, 2**40, low_discrepancy=low_discrepancy)
    part = draw(kind, 3, 2**40 + 5, low_discrepancy=low_discrepancy)
    assert torch.equal(part.time, whole.time[5:8])
    assert torch.equal(part.sigma, whole.sigma[5:8])
    assert not torch.equal(draw(kind, 12, 2**40, seed=1, low_discrepancy=low_discrepancy).time, whole.time)


@pytest.mark.parametrize("first", [0, 12_345, 2**41 + 7])
@pytest.mark.parametrize("n", [16, 100, 256])
def test_neighbours_of_low_discrepancy_cover_all_levels_evenly(first: int, n: int) -> None:
    """The star discrepancy of any n consecutive draws is about log n / n; of random ones it is about 1/sqrt(n)."""
    u = draw("flow", n, first, kind="uniform", low_discrepancy=True).sigma.sort().values
    i = torch.arange(n)
    discrepancy = torch.maximum((u - i / n).abs(), (u - (i + 1) / n).abs()).max().item()
    assert discrepancy < 3 / n


def test_the_golden_sequence_is_exact_at_any_position() -> None:
    """Against exact rational arithmetic, also where position x 2^64 / golden ratio has wrapped around many times."""
    step = Fraction(0x9E3779B97F4A7C15, 2**64)
    for first in (0, 10**9, 2**50):
        u = draw("flow", 2, first, kind="uniform", low_discrepancy=True).sigma
        assert (u[1] - u[0]).item() % 1 == pytest.approx(float(step), abs=1e-9)
        origin = draw("flow", 1, kind="uniform", low_discrepancy=True).sigma.item()
        assert (u[0].item() - origin) % 1 == pytest.approx(float(first * step % 1), abs=1e-9)
