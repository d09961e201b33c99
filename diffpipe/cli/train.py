"""`diffpipe train CONFIG [key=value …]`."""

from __future__ import annotations

import argparse
import os

from diffpipe import output
from diffpipe.cli import options
from diffpipe.process import is_main_process


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
    from diffpipe.config import load_config
    from diffpipe.experiment.config import Experiment
    from diffpipe.run_folder import committed, step_of

    stopped_by = train(args.config, args.overrides)
    if is_main_process():
        run = load_config(Experiment, args.config, args.overrides).run
        (newest, *_) = committed(run.checkpoints)
        output.current.add(run=run.path, step=step_of(newest), signal=stopped_by and stopped_by.name)
    return os.EX_TEMPFAIL if stopped_by else 0
