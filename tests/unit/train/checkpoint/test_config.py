"""The checkpoint section of a config."""

from __future__ import annotations

import pytest

from diffpipe.config import validate
from diffpipe.train.checkpoint.config import CheckpointConfig


def test_the_key_is_async_in_configs_that_are_read_and_written() -> None:
    config = validate(CheckpointConfig, {"async": False}, "here")
    assert not config.asynchronous
    assert config.model_dump(mode="json")["async"] is False
    assert validate(CheckpointConfig, config.model_dump(mode="json"), "there") == config


def test_fewer_than_two_are_refused() -> None:
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointConfig(keep_last=1)
