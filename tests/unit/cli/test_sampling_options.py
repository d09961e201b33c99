"""The options of commands that generate."""

from __future__ import annotations

import argparse

from diffpipe.cli import sampling_options
from diffpipe.experiment.sampling_options import NAMES


def test_a_command_that_samples_has_every_option_of_sampling() -> None:
    parser = argparse.ArgumentParser()
    sampling_options.add_to(parser)
    assert set(NAMES) <= vars(parser.parse_args([])).keys()
