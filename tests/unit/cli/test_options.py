"""The options that several commands share."""

from __future__ import annotations

import argparse

import pytest

from diffpipe.cli import options


def test_a_command_takes_the_trained_weights_or_one_average() -> None:
    parser = argparse.ArgumentParser()
    options.add_weights(parser)
    assert options.values(parser.parse_args(["--ema", "0.1"]), "raw", "ema") == {"raw": False, "ema": 0.1}
    with pytest.raises(SystemExit):
        parser.parse_args(["--raw", "--ema", "0.1"])
