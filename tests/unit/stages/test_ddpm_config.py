"""The config of the DDPM stage: predictions and the schedules that go with them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffpipe.stages.ddpm_config import DDPMConfig


def config(**changes: object) -> DDPMConfig:
    return DDPMConfig.model_validate({"kind": "ddpm", **changes})


@pytest.mark.parametrize(
    ("prediction", "kind"), [("eps", "linear"), ("x0", "linear"), ("v", "linear"), ("edm", "edm"), ("flow", "flow")]
)
def test_a_prediction_has_the_schedule_that_goes_with_it(prediction: str, kind: str) -> None:
    assert config(prediction=prediction).schedule.kind == kind
    assert config(prediction=prediction, schedule={}).schedule.kind == kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prediction": "edm", "schedule": {"kind": "cosine"}},
            "does not go with schedule.kind cosine: it takes eps or",
        ),
        (
            {"prediction": "v", "schedule": {"kind": "edm"}},
            "prediction v does not go with schedule.kind edm: it takes edm",
        ),
        ({"prediction": "eps", "schedule": {"kind": "flow"}}, "it takes flow or x0"),
        ({"schedule": {"zero_terminal_snr": True}}, "leaves nothing that eps could tell; set prediction=v or x0"),
        ({"prediction": "flow", "learned_variance": True}, "learned_variance needs a schedule with timesteps"),
        ({"prediction": "edm", "schedule": {"sigma_min": 90}}, "sigma_min is 90.0, not below sigma_max 80.0"),
        ({"one_sided_ends": True}, "prediction eps is none; set prediction=x0, or leave it out"),
        (
            {"one_sided_ends": True, "prediction": "x0", "codec": {"kind": "vae", "run": "runs/vae"}},
            "about black and white pixels, and codec.kind is vae; leave it out",
        ),
        ({"sampler": {"guidance_interval": [5, 1]}}, "must ascend"),
        (
            {"prediction": "v", "network": {"kind": "edm2"}},
            "which prediction v does not have; set prediction=edm",
        ),
    ],
)
def test_predictions_and_schedules_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)
