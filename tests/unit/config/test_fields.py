"""The fields of config classes that a dotted key names, and the values that they take."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from diffpipe.config import Config
from diffpipe.config.fields import fields_at, takes_free_text, takes_scalars, takes_words
from diffpipe.experiment.config import Experiment


class Words(Config):
    plain: str
    null: str | None
    several: str | list[str]
    marked: Annotated[str, Field(min_length=1)]
    choice: Literal["a", "b"]
    number: int
    either: str | int
    digit: Literal[1, 3]
    only_list: list[str]


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("plain", (True, False, False)),
        ("null", (True, True, False)),
        ("several", (True, False, True)),
        ("marked", (True, False, False)),
        ("choice", (False, False, False)),
        ("number", (False, False, False)),
        ("either", (False, False, False)),
        ("digit", (False, False, False)),
        ("only_list", (False, False, True)),
    ],
)
def test_a_field_takes_words_where_it_takes_text_and_no_number(key: str, takes: tuple[bool, bool, bool]) -> None:
    assert takes_words(Words.model_fields[key]) == takes


def test_a_key_is_looked_up_in_all_kinds_of_its_section() -> None:
    assert len(fields_at(Experiment, ["stage", "kind"])) > 4
    assert len(fields_at(Experiment, ["train", "steps"])) == 1
    assert fields_at(Experiment, ["train", "no"]) == []
    assert fields_at(Experiment, ["no", "steps"]) == []


@pytest.mark.parametrize(
    ("key", "free_text", "scalars"),
    [
        ("run.dir", True, True),
        ("data.train", True, True),
        ("data.resolution", False, True),
        ("data.sources", False, False),
        ("data.order_version", False, True),
        ("stage.sampler.kind", False, True),
        ("stage.prediction", False, True),
        ("optimizer.lr", False, True),
        ("optimizer.betas", False, False),
        ("optimizer.lr_factors", False, False),
        ("ema", False, False),
    ],
)
def test_which_keys_take_free_text_and_which_take_scalars(key: str, free_text: bool, scalars: bool) -> None:
    fields = fields_at(Experiment, key.split("."))
    assert {takes_free_text(field) for field in fields} == {free_text}
    assert {takes_scalars(field) for field in fields} == {scalars}
