"""The base of every config: unknown keys, booleans for numbers, infinities and mutation are errors."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffpipe.config import Config


class Numbers(Config):
    """A section of a config."""

    steps: int = 3
    """Steps to take."""
    rate: float = 0.5
    """How fast."""
    flag: bool = False
    """Whether to."""


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"step": 1}, "step"),
        ({"steps": True}, "steps"),
        ({"rate": False}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"steps": 1.5}, "steps"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_key(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Numbers.model_validate(values)
    assert [error["loc"] for error in caught.value.errors()] == [(word,)]


def test_a_boolean_key_takes_booleans_and_a_number_whole_floats() -> None:
    assert Numbers.model_validate({"flag": True, "steps": 4.0}) == Numbers(flag=True, steps=4)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Numbers().steps = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_the_docstrings_of_fields_are_their_descriptions() -> None:
    assert Numbers.model_json_schema()["properties"]["rate"]["description"] == "How fast."
