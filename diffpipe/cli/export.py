"""`diffpipe export RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.files import user_path
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe export runs/photos weights/photos --to safetensors")
    options.add_run(parser)
    parser.add_argument(
        "out", type=user_path, metavar="OUT", help="folder for one safetensors file per network, and config"
    )
    parser.add_argument("--to", choices=["safetensors"], default="safetensors", help="format (default %(default)s)")
    options.add_weights(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load

    with load(args.run, raw=args.raw, ema=args.ema, precision="fp32", device="cpu") as run:
        run.export(args.out)
    if is_main_process():
        options.print_result(f"{run.weights} weights of step {run.step}: {args.out}")
