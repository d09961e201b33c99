"""`diffpipe attribute RUN SHARDS OUT --from CLASS --to CLASS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe attribute runs/vae shards/photos attribute.png --from 0 --to 1")
    options.add_run(parser, "a run that encodes without classes, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png; the figures go beside it as .json")
    parser.add_argument("--from", type=int, required=True, dest="source", metavar="CLASS", help="class to move from")
    parser.add_argument("--to", type=int, required=True, dest="target", metavar="CLASS", help="class to move to")
    options.add_count(parser, 500, "most images of a class in its mean")
    parser.add_argument("--rows", type=int, default=8, help="images in the picture (default %(default)s)")
    options.add_seed(parser, "seed that draws the images")
    options.add_weights(parser)
    options.add_runtime(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.attributes import FEWEST, move_between, score_file
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.metrics import protocol
    from diffpipe.report.attribute_grid import attribute_grid
    from diffpipe.report.labelled_grid import require_png, save
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.source == args.target:
        raise UserError(f"--from {args.source} and --to {args.target} are one class; give two")
    if args.n < FEWEST or args.rows < 1:
        raise UserError(f"--n {args.n} --rows {args.rows}: give {FEWEST} or more images and 1 or more rows")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        run = open_run(args.run, [], runtime, raw=args.raw)
        pair, moved = move_between(run, args.shards, args.source, args.target, runtime, n=args.n, seed=args.seed)

        def write() -> None:
            save(attribute_grid(moved, pair, run, args.rows), args.out)
            protocol.write_json(score_file(moved, pair, run, runtime, seed=args.seed), args.out.with_suffix(".json"))

        on_rank_zero(runtime, write)
        print_on_rank_zero(runtime, f"{moved.text(*pair.names)}\n{args.out}")
