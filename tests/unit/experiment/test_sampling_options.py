"""The options of sampling as overrides of a config: each is a key of a sampler."""

from __future__ import annotations

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.sampling_options import OF_DIFFUSION, sampling_overrides
from diffpipe.stages.guidance import GuidedSamplerConfig


def test_options_are_overrides_and_those_left_out_are_none() -> None:
    chosen = {"sampler": "ddim", "eta": 0.5, "clip": False, "steps": None, "guidance_interval": (0.3, 5), "ema": 0.1}
    assert sampling_overrides(chosen) == [
        "stage.sampler.kind=ddim",
        "stage.sampler.eta=0.5",
        "stage.sampler.clip=False",
        "stage.sampler.guidance_interval=[0.3,5]",
    ]
    assert sampling_overrides({"guide": "runs/a"}) == [
        "stage.sampler.guide.run=runs/a",
        "stage.sampler.guide.sha256=null",
    ]
    assert sampling_overrides({"guide": "none"}) == ["stage.sampler.guide=null"]


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="temprature is no option of sampling; did you mean temperature"):
        sampling_overrides({"temprature": 1.0})


def test_the_sampler_has_every_key() -> None:
    assert set(OF_DIFFUSION) <= GuidedSamplerConfig.model_fields.keys()
