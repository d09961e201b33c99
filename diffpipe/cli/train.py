"""`diffpipe train CONFIG [key=value …]`."""

from __future__ import annotations

import argparse
import os

from diffpipe.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe train configs/fashion_mnist/ddpm.yaml train.steps=100",
        "accelerate launch --config_file launch/cpu.yaml --num_processes 2 -m diffpipe train CONFIG",
        notes="`diffpipe config keys` lists every key with its meaning, and so does configs/README.md.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a value of the file: train.steps=9")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or EX_TEMPFAIL (75) after a signal: the run has saved, and the same command resumes it."""
    from diffpipe.api import train

    stopped_by = train(args.config, args.overrides)
    return os.EX_TEMPFAIL if stopped_by else 0
