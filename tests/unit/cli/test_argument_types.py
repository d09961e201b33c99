"""Argument types: a word becomes a value, or the message says what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffpipe.cli import argument_types as types


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (types.natural, "0", 0),
        (types.positive, "7", 7),
        (types.quality, "100", 100),
        (types.fraction, "0.25", 0.25),
        (types.labels, "3,0,12", [3, 0, 12]),
        (types.words, "cat,dog", ["cat", "dog"]),
        (types.words, "", []),
        (types.colour, "#102030", "#102030"),
    ],
)
def test_a_word_becomes_a_value(convert: Callable[[str], Any], text: str, value: object) -> None:
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text", "message"),
    [
        (types.natural, "-1", "-1 is not a number, 0 or more"),
        (types.positive, "0", "0 is not 1 or more"),
        (types.quality, "101", "101 is not 1 to 100"),
        (types.fraction, "1", "1 is not between 0 and 1"),
        (types.fraction, "half", "half is not between 0 and 1"),
        (types.labels, "shoes", "'shoes' is no list of labels"),
        (types.colour, "#10203040", "'#10203040' is no opaque colour"),
        (types.colour, "purplish", "'purplish' is no opaque colour"),
    ],
)
def test_a_wrong_word_is_refused(convert: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        convert(text)
    assert str(raised.value).startswith(message)


def test_a_url_is_no_path_here() -> None:
    assert types.local_path("runs/a:b") == Path("runs/a:b")
    with pytest.raises(argparse.ArgumentTypeError, match="s3:// is no path on this machine"):
        types.local_path("s3://bucket/out?token=secret")
