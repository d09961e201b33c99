"""The data section of a config: contradictions and values out of range are refused by key."""

from __future__ import annotations

import re

import pytest

from diffpipe.config import validate
from diffpipe.data import DataConfig
from diffpipe.errors import UserError


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"channels": 2},
        {"workers": -1},
        {"crop": "left"},
        {"shuffle_window": 0},
        {"resolution": True},
    ],
)
def test_values_out_of_range_are_refused_by_key(values: dict) -> None:
    (key,) = values
    with pytest.raises(UserError, match=key):
        validate(DataConfig, {"train": "unused", "batch_size": 12, "resolution": 8, **values}, "x.yaml")


@pytest.mark.parametrize(("value", "resolution"), [(64, (64, 64)), ([48, 64], (48, 64)), ([64, 64], (64, 64))])
def test_a_resolution_is_one_side_or_height_and_width(value: object, resolution: tuple[int, int]) -> None:
    config = validate(DataConfig, {"train": "unused", "batch_size": 12, "resolution": value}, "x.yaml")
    assert config.resolution == resolution
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("value", [0, [0, 3], [8], [8, 8, 8], [True, 8], 1.5, "48x64", None, 2**17])
def test_what_is_no_resolution_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(UserError, match=r"^x\.yaml: resolution: give one side in pixels, such as 64, or \[height, wi"):
        validate(DataConfig, {"train": "unused", "batch_size": 12, "resolution": value}, "x.yaml")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "either as data.train=PATH or as data.sources"),
        ({"train": "a", "sources": [{"url": "b"}]}, "either as data.train=PATH or as data.sources"),
        ({"sources": [{"url": "b", "weight": 0}]}, "sources.0.weight"),
        ({"sources": [{"path": "b"}]}, "unknown key sources.0.path in section sources.0; known: url, weight"),
        ({"sources": [{"url": "b", "wieght": 2}]}, "did you mean sources.0.weight?"),
    ],
)
def test_a_config_names_either_train_or_sources(values: dict, word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        validate(DataConfig, {"batch_size": 1, "resolution": 8, **values}, "x.yaml")


def test_a_url_with_a_secret_is_refused_wherever_it_stands() -> None:
    secret = "https://host/x.tar?token=secret"
    for values in ({"train": secret}, {"train": "a", "test": ["b", secret]}, {"sources": [{"url": ["a", secret]}]}):
        with pytest.raises(UserError, match="has a password or a query in it") as caught:
            validate(DataConfig, {"batch_size": 1, "resolution": 8, **values}, "x.yaml")
        assert "token=secret" not in str(caught.value)


def test_the_shards_of_all_sources_are_trained_on() -> None:
    sources = [{"url": "a"}, {"url": ["b", "c"], "weight": 3}]
    config = validate(DataConfig, {"batch_size": 1, "resolution": 8, "sources": sources}, "x.yaml")
    assert config.trained_on == ["a", "b", "c"]
