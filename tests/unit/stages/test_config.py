"""The words for a stage's family, and the runs and networks that a stage needs."""

from __future__ import annotations

import pytest

from diffpipe.dependency import Dependency
from diffpipe.stages.config import StageConfig
from tests.support.stage_cases import CASES


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("ddpm", "ddpm (unet)"),
        ("latent_ddpm", "latent ddpm (unet)"),
        ("flow", "flow (glow)"),
        ("tarflow", "flow (tarflow)"),
        ("gan", "gan"),
    ],
)
def test_a_family_is_named_by_its_kind_and_its_network(case: str, words: str) -> None:
    assert CASES[case].experiment().stage.describe() == words


def test_a_stage_needs_nothing_unless_it_says_so() -> None:
    assert StageConfig().dependencies() == ()
    assert CASES["ddpm"].experiment().stage.dependencies() == ()


def test_a_latent_diffusion_always_needs_its_codec() -> None:
    stage = CASES["latent_ddpm"].experiment("stage.codec.run=runs/vae").stage
    assert stage.dependencies() == (Dependency("codec", "stage.codec", "run", "runs/vae", None, needed="always"),)
    assert stage.dependencies()[0].key == "stage.codec.run"
