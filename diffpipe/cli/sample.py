"""`diffpipe sample RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.errors import UserError
from diffpipe.files import user_path
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe sample runs/photos samples/photos --n 64 --sampler ddim --steps 50")
    options.add_run(parser)
    parser.add_argument(
        "out", type=user_path, metavar="OUT", help="folder for 000000.png … by sample index, and grid.png"
    )
    options.add_count(parser, 64, "images to generate")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load

    if args.n < 1:
        raise UserError(f"--n {args.n}: give 1 or more")
    runtime = options.values(args, "precision", "device")
    with load(args.run, raw=args.raw, ema=args.ema, overrides=options.sampling_overrides(args), **runtime) as run:
        run.write_samples(args.out, args.n, seed=args.seed, label=args.label)
    if is_main_process():
        options.print_result(
            f"{plural(args.n, 'image')} of step {run.step}, {run.weights} weights: {args.out}/grid.png"
        )
