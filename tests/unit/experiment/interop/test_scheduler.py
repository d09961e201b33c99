"""diffusers' schedulers and our schedule, prediction and sampler: equal tables, to and fro, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pydantic import TypeAdapter

from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.errors import UserError
from diffpipe.experiment.interop.scheduler import from_scheduler, to_scheduler
from diffpipe.stages.ddpm_config import DDPMConfig

CLASSES: dict[str, Any] = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}


def stage(**keys: Any) -> DDPMConfig:
    return TypeAdapter(DDPMConfig).validate_python({"kind": "ddpm", **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"schedule": {"kind": "cosine", "steps": 100}, "prediction": "x0"},
        {"schedule": {"kind": "scaled_linear"}, "sampler": {"kind": "ancestral", "variance": "large"}},
        {"schedule": {"kind": "sigmoid", "steps": 200}, "sampler": {"spacing": "linspace", "clip": False}},
        {"schedule": {"kind": "linear", "steps": 200}, "sampler": {"dynamic_threshold": 0.9}},
        {"schedule": {"kind": "cosine", "zero_terminal_snr": True}, "prediction": "v"},
        {"learned_variance": True, "sampler": {"kind": "ancestral"}},
    ],
)
def test_theirs_has_the_same_levels_and_comes_back_as_ours(keys: dict[str, Any]) -> None:
    ours = stage(**keys)
    name, config = to_scheduler(ours, learned_variance=True)
    theirs = CLASSES[name](**config)
    assert isinstance(ours.schedule, DiscreteScheduleConfig)
    schedule = ours.schedule.build()
    expected = schedule.log_alpha_bar[1:].exp().float()
    torch.testing.assert_close(theirs.alphas_cumprod, expected, rtol=2e-4, atol=1e-6)
    section, notes = from_scheduler(name, {"_class_name": name, **dict(theirs.config)}, "scheduler_config.json")
    back = stage(**section)
    assert notes == []
    assert (back.prediction, back.learned_variance) == (ours.prediction, ours.learned_variance)
    of_sampler = {"kind", "spacing", "clip", "variance", "dynamic_threshold"}
    assert back.sampler.model_dump(include=of_sampler) == ours.sampler.model_dump(include=of_sampler)
    assert isinstance(back.schedule, DiscreteScheduleConfig)
    torch.testing.assert_close(back.schedule.build().log_alpha_bar, schedule.log_alpha_bar)


def test_configs_of_early_versions_are_read() -> None:
    tree = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "clip_sample": True, "tensor_format": "pt"}
    tree |= {"trained_betas": None, "timestep_values": None, "variance_type": "fixed_large", "predict_epsilon": False}
    section, _ = from_scheduler("DDPMScheduler", tree, "x")
    assert section["prediction"] == "x0"
    assert section["sampler"]["variance"] == "large"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'; give 'linear'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'; give 'epsilon'"),
        ({"variance_type": "learned"}, "variance_type is learned"),
        ({"trained_betas": [0.1, 0.5, 0.2]}, "trained_betas are of none of the schedules"),
        ({"trained_betas": []}, "trained_betas has 0 betas, and a schedule has 2 or more"),
        ({"trained_betas": [0.1]}, "trained_betas has 1 beta, and"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"of_tomorrow": 1}, "unknown key of_tomorrow"),
    ],
)
def test_other_schedulers_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"^scheduler_config.json: .*{words}"):
        from_scheduler("DDPMScheduler", keys, "scheduler_config.json")


def test_what_our_sampler_does_otherwise_is_said() -> None:
    tree = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample_range": 2.0}
    _, notes = from_scheduler("DDIMScheduler", tree, "x")
    assert [note.split()[1].split("=")[0] for note in notes] == [
        "steps_offset",
        "set_alpha_to_one",
        "clip_sample_range",
    ]


def test_a_schedule_without_timesteps_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.schedule\.kind is edm"):
        to_scheduler(stage(prediction="edm"), learned_variance=True)
