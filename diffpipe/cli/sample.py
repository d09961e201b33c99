"""`diffpipe sample RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe sample runs/photos samples/photos --n 64 --sampler ddim --steps 50")
    options.add_run(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for 000000.png … by sample index, and grid.png")
    options.add_count(parser, 64, "images to generate")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.samples import write_samples
    from diffpipe.experiment.run import generated_images, open_run
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.n < 1:
        raise UserError(f"--n {args.n}: give 1 or more")
    with Runtime.start(args.precision, args.device) as runtime:
        run = open_run(args.run, options.sampling_overrides(args), runtime, raw=args.raw)
        source = generated_images(run, runtime, n=args.n, seed=args.seed, label=args.label)
        write_samples(source, args.out, runtime)
        print_on_rank_zero(
            runtime, f"{args.n} images of step {run.checkpoint.step}, {run.weights} weights: {args.out}/grid.png"
        )
