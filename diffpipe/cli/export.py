"""`diffpipe export RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe export runs/photos weights/photos --to safetensors")
    options.add_run(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for one safetensors file per network, and config")
    parser.add_argument("--to", choices=["safetensors"], default="safetensors", help="format (default %(default)s)")
    options.add_weights(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.export import export_safetensors
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    with Runtime.start("fp32", "cpu") as runtime:
        run = open_run(args.run, [], runtime, raw=args.raw)
        on_rank_zero(runtime, lambda: export_safetensors(run, args.out))
        print_on_rank_zero(runtime, f"{run.weights} weights of step {run.checkpoint.step}: {args.out}")
