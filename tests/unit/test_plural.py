"""Numbers with their nouns, and no message that has only the plural."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffpipe
from diffpipe.plural import duration, plural

PACKAGE = Path(diffpipe.__file__).parent
COUNTED = """batch class group image label latent member micro-batch pair point position process sample score shard step
tensor time update value channel evaluation file line column"""
# Plurals that are right: the number is larger than 1, or not a count. So are those beside a constant.
RIGHT = {
    "{self.n} images": "of classified images, 4 or more",
    "{self.likelihoods.n} images": "of a mean likelihood, 2 or more",
    "{real.n} images": "of a reference, 4 or more",
    "{n:,} images": "of scores, 2 or more",
    "{needed} images": "more than the neighbours",
    "{images.shape[1]} channels": "neither 1 nor 3",
    "{self.T} steps": "of 1 to T steps",
    "{T} steps": "of 2 to T steps",
    "{steps} steps": "of a chain, 2 or more",
    "{len(images)} columns": "0, or 2 and more",
    "{most} values": "of a checkpoint, many",
    "{log.lines:,} lines": "more than the points of a curve",
    "{largest} images": "of the larger micro-batches, 2 or more",
    "{shards} processes": "2 or more that share a copy",
    "{held / whole:.1f} times": "a ratio",
    "{named[key]} times": "2 or more",
    "{images / epoch:,.0f} images": "of an epoch",
    "{values['images_per_second']:.0f} images": "a rate",
}
PLURALS = [f"{word}es" if word.endswith(("s", "ch")) else f"{word}s" for word in COUNTED.split()]
PATTERN = re.compile(rf"\{{(?!_?[A-Z_]+(?::[^{{}}]*)?\}})[^{{}}]*\}} (?:{'|'.join(PLURALS)})\b")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((21, "process", "processes"), "21 processes"),
        (("1", "step"), "1 step"),
        (("1.5", "step"), "1.5 steps"),
        ((1, "line is", "lines are"), "1 line is"),
    ],
)
def test_one_is_in_the_singular(words: tuple[int | str, str], text: str) -> None:
    assert plural(*words) == text


def counted_plurals(path: Path) -> Iterator[str]:
    """The numbers with a plural noun in the f-strings of a file, such as `{n} images`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield from PATTERN.findall(ast.unparse(node))


def test_no_message_has_only_the_plural() -> None:
    places = [
        f"{path}: {text}" for path in PACKAGE.rglob("*.py") for text in counted_plurals(path) if text not in RIGHT
    ]
    assert not places


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45.2, "45 s"), (61.0, "1 min 1 s"), (3600.0 * 5 + 60 * 7, "5 h 7 min"), (86400.0 * 3 + 3600, "3 d 1 h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
