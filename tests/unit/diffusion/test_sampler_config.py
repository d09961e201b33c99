"""The settings of a sampler, and the steps that they make."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from diffpipe.diffusion.process import CLEAN
from diffpipe.diffusion.sampler_config import SAMPLERS, SamplerConfig, steps
from diffpipe.diffusion.samplers import find
from diffpipe.diffusion.schedule import DiscreteScheduleConfig


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_known_sampler_is_there(kind: str) -> None:
    assert find(kind).__name__ == kind


def test_the_steps_lead_from_the_most_noise_to_x0() -> None:
    schedule = DiscreteScheduleConfig().build()
    visited = list(steps(schedule, SamplerConfig(steps=4)))
    assert [i for i, _, _ in visited] == [0, 1, 2, 3]
    assert [level.time for _, level, _ in visited] == [999, 749, 499, 249]
    assert [lower.time for _, _, lower in visited[:-1]] == [749, 499, 249]
    assert visited[-1][2] is CLEAN


@pytest.mark.parametrize(
    "bad", [{"kind": "leap"}, {"steps": 0}, {"eta": 1.5}, {"spacing": "even"}, {"churn": -1}, {"dynamic_threshold": 1}]
)
def test_settings_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SamplerConfig.model_validate(bad)
