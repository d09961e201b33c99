"""The options that several commands share."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.experiment.sampling_options import NAMES


def test_a_command_that_samples_has_every_option_of_sampling() -> None:
    parser = argparse.ArgumentParser()
    options.add_sampling(parser)
    assert set(NAMES) <= vars(parser.parse_args([])).keys()
