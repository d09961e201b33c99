"""`diffpipe train CONFIG [key=value …]`, and the commands of a sweep."""

from __future__ import annotations

import argparse
import os
import shlex

from diffpipe import output
from diffpipe.cli import options
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe train configs/fashion_mnist/ddpm.yaml train.steps=100",
        "accelerate launch --config_file launch/cpu.yaml --num_processes 2 -m diffpipe train CONFIG",
        "diffpipe train CONFIG optimizer.lr=1e-4,2e-4 seed=0,1 > sweep.txt",
        notes="`diffpipe config keys` lists every key with its meaning, and so does configs/README.md. Where a key has "
        "several values, nothing is trained: the commands are printed, one per line.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=options.OVERRIDES)
    text = "several values of a key that takes text, where a comma may be part of a value; may be given several times"
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=A,B", help=text)


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or EX_TEMPFAIL (75) after a signal: the run has saved, and the same command resumes it."""
    from diffpipe.api import train
    from diffpipe.experiment.load_experiment import load_experiment
    from diffpipe.experiment.sweep import sweep_commands
    from diffpipe.run_folder import committed, step_of

    commands = sweep_commands(args.config, args.overrides, args.sweep)
    if commands:
        _print_commands(commands)
        return 0
    stopped_by = train(args.config, args.overrides)
    if is_main_process():
        run = load_experiment(args.config, args.overrides).run
        (newest, *_) = committed(run.checkpoints)
        output.current.add(run=run.path, step=step_of(newest), signal=stopped_by and stopped_by.name)
    return os.EX_TEMPFAIL if stopped_by else 0


def _print_commands(commands: list[list[str]]) -> None:
    if is_main_process():
        options.print_result("\n".join(map(shlex.join, commands)), commands=commands)
        options.print_notes([f"{plural(len(commands), 'command')} of a sweep; nothing was trained"])
