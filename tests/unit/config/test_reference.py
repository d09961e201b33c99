"""The config explains itself: every key has a description, and the reference shows it."""

from __future__ import annotations

import pytest

from diffpipe.config.reference import Key, as_markdown, as_text, sections
from diffpipe.experiment.config import Experiment

KEYS = [key for section in sections(Experiment) for key in section.keys]


@pytest.mark.parametrize("section", list(sections(Experiment)), ids=lambda section: section.title)
def test_every_key_and_every_section_has_a_description(section) -> None:
    assert section.description or section.title == "the top level"
    for key in section.keys:
        assert key.description, f"{key.name}: write a docstring below the field"
        assert key.description[-1] == ".", f"{key.name}: end the description with a full stop"
        assert not key.description.startswith(("What ", "Of ", "How many ", "Whether "))


def test_the_keys_of_every_kind_are_there() -> None:
    names = {key.name for key in KEYS}
    assert {"seed", "data.batch_size", "data.sources.weight", "checkpoint.async", "validate.every"} <= names
    assert {"stage.network.channels", "stage.codec.sha256", "stage.patch.network.blocks", "stage.r1"} <= names
    kinds = {key.type for key in KEYS if key.name == "stage.kind"}
    assert kinds == {"adversarial", "autoencoder", "autoregressive", "ddpm", "flow", "gan", "vae", "vq"}


def _key(name: str) -> Key:
    return next(key for key in KEYS if key.name == name)


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("train.steps", "int ≥ 1", None),
        ("train.shard_size", "int ≥ 1 or null", "null"),
        ("train.record_samples", "true | false", "false"),
        ("data.train", "str or list of str or null", "null"),
        ("data.channels", "1 | 3", "3"),
        ("optimizer.betas", "[float, float]", "[0.9, 0.999]"),
        ("optimizer.lr_factors", "mapping from str to float > 0", "{}"),
        ("ema.decay", "float > 0, < 1", "0.9999"),
        ("run.allow_changes", "list of str", "[]"),
        ("stage.network.channel_mult", "list of int ≥ 1", "[1, 2, 2, 2]"),
    ],
)
def test_types_and_defaults_are_in_words(name: str, kind: str, default: str | None) -> None:
    key = _key(name)
    assert key.type == kind
    assert key.default == default


def test_both_forms_hold_every_description() -> None:
    text, markdown = as_text(Experiment), as_markdown(Experiment)
    for key in KEYS:
        assert key.description in text
        assert key.description.replace("|", "\\|") in markdown
    assert "seed" not in as_text(Experiment, "stage.network").split()
