"""The config of a run: where its files are, the keys with another name in YAML, and the bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.config import RunConfig
from tests.support.stage_cases import CASES


def test_a_run_knows_its_files() -> None:
    run = RunConfig(dir="runs/photos")
    assert run.path == Path("runs/photos")
    assert run.checkpoints == run.path / "checkpoints"
    assert run.interrupted == run.path / ".interrupted"


def test_a_run_directory_that_safetensors_cannot_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"run\.dir.*its name is not UTF-8.*runs/\\udcff; give another"):
        CASES["ddpm"].experiment("run.dir=runs/\udcff")


def test_validation_is_called_validate_in_the_config() -> None:
    experiment = CASES["ddpm"].experiment("run.dir=x", "validate.every=3", "validate.n=5")
    assert (experiment.validation.every, experiment.validation.n) == (3, 5)
    assert experiment.model_dump()["validate"] == {"every": 3, "n": 5}
    with pytest.raises(UserError, match="unknown key validation"):
        CASES["ddpm"].experiment("validation.every=3")


@pytest.mark.parametrize(
    ("word", "least"),
    [
        ("seed=-1", "0"),
        ("eval.n=1", "2"),
        ("eval.every=-1", "0"),
        ("eval.reconstruction=-1", "0"),
        ("sample.n=0", "1"),
        ("validate.n=0", "1"),
    ],
)
def test_numbers_below_their_bound_are_refused(word: str, least: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(UserError, match=rf"^{key} is {value}; give .* ≥ {least}\b"):
        CASES["ddpm"].experiment(word)
    CASES["ddpm"].experiment(f"{key}={least}")
    assert int(value) < int(least)
