"""`diffpipe attribute RUN SHARDS OUT --from CLASS --to CLASS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.errors import UserError
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe attribute runs/vae shards/photos attribute.png --from 0 --to 1")
    options.add_run(parser, "a run that encodes without classes, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    parser.add_argument(
        "out", type=types.local_path, metavar="OUT", help="the picture, a .png; the figures go beside it as .json"
    )
    parser.add_argument("--from", type=int, required=True, dest="source", metavar="CLASS", help="class to move from")
    parser.add_argument("--to", type=int, required=True, dest="target", metavar="CLASS", help="class to move to")
    options.add_count(parser, 500, "most images of a class in its mean")
    parser.add_argument("--rows", type=int, default=8, help="images in the picture (default %(default)s)")
    options.add_seed(parser, "seed that draws the images")
    options.add_weights(parser)
    options.add_runtime(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.metrics import protocol
    from diffpipe.report.attribute_grid import attribute_grid
    from diffpipe.report.picture_file import require_png, save

    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: give 1 or more")
    require_png(args.out)
    with load(args.run, raw=args.raw, ema=args.ema, **options.values(args, "precision", "device")) as run:
        how = options.values(args, "source", "target", "n", "seed", "precision")
        result = run.move_attribute(args.shards, **how)
    if is_main_process():
        save(attribute_grid(result.pair, result.moved, args.rows, run.title), args.out)
        protocol.write_json(tree := result.tree(), figures := args.out.with_suffix(".json"))
        options.print_result(result.text(), args.out, figures, **options.about_run(args.run, run), **tree)
