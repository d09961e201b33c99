"""The noise level of each evaluation of a sampler."""

from __future__ import annotations

import pytest

from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.diffusion.visited_levels import visited_levels

SCHEDULE = DiscreteScheduleConfig().build()


@pytest.mark.parametrize(("kind", "evaluations"), [("ancestral", 5), ("ddim", 5), ("dpmpp_2m", 5), ("heun", 9)])
def test_each_evaluation_has_its_level(kind: str, evaluations: int) -> None:
    levels = visited_levels(SCHEDULE, SamplerConfig(kind=kind, steps=5))
    assert len(levels) == evaluations
    assert levels[0].time == 999
    assert sorted((level.ratio for level in levels), reverse=True) == [level.ratio for level in levels]
