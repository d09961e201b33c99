"""Resolutions: their forms in a config, in JSON and in messages, and the sums that networks do with them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from diffpipe.resolution import Resolution, parse_resolution, square

FORMS = [(square(64), 64, "64"), (Resolution(48, 64), [48, 64], "48x64")]


@pytest.mark.parametrize(("resolution", "plain", "text"), FORMS)
def test_a_square_is_one_number(resolution: Resolution, plain: object, text: str) -> None:
    adapter = TypeAdapter(Resolution)
    assert resolution.plain() == plain
    assert adapter.dump_python(resolution, mode="json") == plain
    assert adapter.validate_python(plain) == parse_resolution(plain) == resolution
    assert f"{resolution}" == text


def test_the_schema_has_both_forms() -> None:
    one, two = TypeAdapter(Resolution).json_schema()["anyOf"]
    assert (one["type"], two["type"], two["minItems"], two["maxItems"]) == ("integer", "array", 2, 2)


def test_numbers_are_read_as_other_keys_of_a_config_read_them() -> None:
    assert parse_resolution("64") == parse_resolution(64.0) == parse_resolution((64, 64)) == square(64)


@pytest.mark.parametrize("value", [0, [0, 3], [1, 2, 3], [4], True, "64x", 64.5, None, {"height": 4}])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"give one side in pixels, such as 64, or \[height, width\]"):
        parse_resolution(value)


def test_sides_are_divided_together() -> None:
    wide = Resolution(48, 64)
    assert (wide.shorter, wide.pixels, wide.is_square) == (48, 3072, False)
    assert wide.divisible_by(16)
    assert not wide.divisible_by(32)
    assert wide.divided_by(16) == (3, 4)
