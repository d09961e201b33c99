"""`key=value` words: text for a key that takes text is taken as typed, and other values are read as YAML."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from diffpipe.config.overrides import override
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment


def overridden(word: str) -> Any:
    """The value that the word sets."""
    tree: dict[str, Any] = {}
    override(Experiment, tree, word)
    return reduce(lambda section, key: section[key], word.partition("=")[0].split("."), tree)


@pytest.mark.parametrize(
    "text",
    [
        "runs/exp #2",
        "007",
        "2024-02-31",
        "1e3",
        "on",
        "12:30",
        "a: b",
        "- a",
        "*x",
        "[x]",
        "{x}",
        "~/a",
        "~",
        "a=b",
        "é 'q'",
    ],
)
def test_a_path_is_taken_as_typed(text: str) -> None:
    assert overridden(f"run.dir={text}") == text
    assert overridden(f"stage.codec.run={text}") == text  # of one kind of codec only


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run.dir='a b'", "a b"),
        ("run.dir=", None),
        ("data.test=null", None),
        ("data.test=~", None),
        ("data.train=[a, b]", ["a", "b"]),
        ("data.train=['a #1', b]", ["a #1", "b"]),
        ("data.train=[a-c]*.tar", "[a-c]*.tar"),
        ("data.train={a,b}/x-{000..009}.tar", "{a,b}/x-{000..009}.tar"),
        ("train.precision=bf16", "bf16"),
        ("train.steps=7", 7),
        ("optimizer.lr=1e-4", "1e-4"),  # YAML has it as a word, and the field reads it
        ("optimizer.lr_factors={a: 2}", {"a": 2}),
        ("optimizer.lr_factors.a=2", 2),
        ("no.such.key=[1]", [1]),
    ],
)
def test_lists_quotes_null_and_other_fields_are_yaml(word: str, value: Any) -> None:
    assert overridden(word) == value


@pytest.mark.parametrize("word", ["train.steps=[1", "optimizer={lr: 1, lr: 2}", "seed=" + "9" * 5000, "x" * 9000])
def test_what_cannot_be_read_is_refused_in_a_short_line(word: str) -> None:
    with pytest.raises(UserError) as error:
        overridden(word)
    assert len(str(error.value)) < 500
