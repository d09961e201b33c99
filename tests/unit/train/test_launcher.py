"""Options of accelerate launch that have no effect here are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from diffpipe.errors import UserError
from diffpipe.train.launcher import launched_for_fsdp
from diffpipe.train.runtime import Runtime

_CPU = Path(__file__).parents[3] / "launch" / "cpu.yaml"


def test_launcher_options_without_effect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, words in [
        ("FSDP_VERSION", "1", "use --fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "FSDP_OFFLOAD_PARAMS=true"),
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "use train.parallel=hsdp"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "use train.precision instead"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "use train.parallel=fsdp"),
    ]:
        with monkeypatch.context() as env:
            env.setenv("ACCELERATE_USE_FSDP", "true")
            env.setenv(name, value)
            with pytest.raises(UserError, match=words):
                Runtime.start("fp32", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with Runtime.start("fp32", "cpu") as runtime:
        assert runtime.launched_for_fsdp


def test_fsdp_is_switched_off_for_accelerate_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "TRUE")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "true")
    assert launched_for_fsdp()
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert not launched_for_fsdp()


def test_options_of_fsdp_do_not_matter_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert not launched_for_fsdp()


def test_accelerate_passes_accumulation_and_clipping_on_with_deepspeed_only() -> None:
    # launch/README.md says to set train.accumulate and optimizer.clip: here these options cannot even be refused.
    def environment(*options: str) -> dict[str, str]:
        given = launch_command_parser().parse_args(["--config_file", str(_CPU), *options, "train.py"])
        return prepare_simple_launcher_cmd_env(_validate_launch_command(given)[0])[1]

    options = ("--gradient_accumulation_steps", "4", "--gradient_clipping", "2")
    assert environment(*options) == environment()
