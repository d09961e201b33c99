"""The config in a checkpoint: with overrides, under today's names, and from format 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.run import open_run
from diffpipe.experiment.stored_config import stored_config, with_stored_network
from diffpipe.nn.unet import UNetConfig
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime
from tests.support.commands import HOME
from tests.support.run_states import run_state
from tests.support.stage_cases import CASES

OF_FORMAT_2 = {"norm_eps": 1e-5, "frequency_shift": 0, "cos_first": False, "downsample_padding": "both"}
FORMAT_1 = HOME / "tests" / "fixtures" / "format_1" / "step-00000004"


def test_its_state_and_config_are_read_under_todays_names(runtime: Runtime) -> None:
    run = open_run(FORMAT_1, [], runtime)
    state, config = run.checkpoint.state, run.experiment
    assert (run.checkpoint.format, state.step, state.position, state.bad_samples) == (1, 4, 32, [])
    stored = json.loads((FORMAT_1 / "state.json").read_text())
    assert state.fingerprint == stored["identity"]["data"]["fingerprint"]
    assert config.stage.network.channel_mult == (1, 2)  # pyright: ignore[reportAttributeAccessIssue]
    assert OF_FORMAT_2.items() <= config.stage.network.model_dump().items()  # pyright: ignore[reportAttributeAccessIssue]
    assert config.optimizer.lr_factors == {"denoiser": 1.5}
    assert (config.data.allow_changes, config.data.max_bad_samples, config.data.interleave) == (True, 3, 64)
    assert config.data.order_version == 1
    assert config.run.allow_changes == ("optimizer.clip",)


def test_a_unet_of_format_2_keeps_the_values_that_were_defaults_then() -> None:
    for name, part in (("ddpm", "network"), ("adversarial", "network"), ("vae", "")):
        tree = CASES[name].experiment("run.dir=x").model_dump(mode="json")
        for key in OF_FORMAT_2 if part else ():
            del tree["stage"][part][key]
        stored = stored_config(Checkpoint(Path("x"), run_state(1, experiment=tree), "0" * 64, format=2))
        if part:
            assert OF_FORMAT_2.items() <= getattr(stored.stage, part).model_dump().items()
            assert OF_FORMAT_2.items() & UNetConfig().model_dump().items() == {("cos_first", False)}
        else:
            assert stored.stage == CASES[name].experiment("run.dir=x").stage


def test_a_resume_keeps_the_checkpoints_unet_where_its_config_does_not_name_the_key() -> None:
    experiment = CASES["ddpm"].experiment("run.dir=x")
    old = experiment.model_dump(mode="json")
    old["stage"]["network"] |= OF_FORMAT_2
    checkpoint = Checkpoint(Path("x"), run_state(1, experiment=old), "0" * 64)
    assert with_stored_network(experiment, checkpoint) == stored_config(checkpoint)
    named = CASES["ddpm"].experiment("run.dir=x", "stage.network.norm_eps=1e-3", "stage.network.dropout=0.3")
    network = with_stored_network(named, checkpoint).stage.network  # pyright: ignore[reportAttributeAccessIssue]
    assert network.model_dump() == named.stage.network.model_dump() | OF_FORMAT_2 | {"norm_eps": 1e-3}  # pyright: ignore[reportAttributeAccessIssue]
    flow = CASES["flow"].experiment("run.dir=x")
    assert with_stored_network(flow, checkpoint) == flow


def test_the_stored_config_is_the_trained_one_and_overrides_leave_it_alone() -> None:
    experiment = CASES["ddpm"].experiment("run.dir=x")
    checkpoint = Checkpoint(Path("x"), run_state(1, experiment=experiment.model_dump(mode="json")), "0" * 64)
    assert stored_config(checkpoint) == experiment
    other = stored_config(checkpoint, ["stage.sampler.steps=7", "seed=5"])
    assert (other.stage.sampler.steps, other.seed) == (7, 5)  # pyright: ignore[reportAttributeAccessIssue]
    assert stored_config(checkpoint) == experiment


def test_an_override_is_refused_without_the_checkpoint_which_is_not_to_blame() -> None:
    tree = CASES["ddpm"].experiment("run.dir=x").model_dump(mode="json")
    checkpoint = Checkpoint(Path("x/checkpoints/step-00000001"), run_state(1, experiment=tree), "0" * 64)
    with pytest.raises(UserError, match=r"^unknown key stage\.sampler\.step; did you mean"):
        stored_config(checkpoint, ["stage.sampler.step=7"])
    with pytest.raises(UserError, match=r"^stage\.sampler\.steps is 0; give an integer ≥ 1$"):
        stored_config(checkpoint, ["stage.sampler.steps=0"])
    checkpoint = Checkpoint(checkpoint.path, run_state(1, experiment=tree | {"seed": -1}), "0" * 64)
    with pytest.raises(UserError, match=r"^x/checkpoints/step-00000001: seed is -1; "):
        stored_config(checkpoint)


def test_betas_of_format_2_were_not_scaled_by_the_number_of_timesteps() -> None:
    experiment = CASES["ddpm"].experiment("run.dir=x", "stage.schedule.kind=linear", "stage.schedule.steps=500")
    tree = experiment.model_dump(mode="json")
    for written, start, end in ((2, 5e-5, 0.01), (3, 1e-4, 0.02)):
        checkpoint = Checkpoint(Path("x"), run_state(1, experiment=tree), "0" * 64, format=written)
        schedule: Any = stored_config(checkpoint).stage.schedule  # pyright: ignore[reportAttributeAccessIssue]
        assert (schedule.beta_start, schedule.beta_end) == pytest.approx((start, end))
