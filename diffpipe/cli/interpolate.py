"""`diffpipe interpolate RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options, sampling_options
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe interpolate runs/vae between.png --shards shards/photos --n 4")
    options.add_run(parser)
    parser.add_argument("out", type=types.local_path, metavar="OUT", help="the picture, a .png")
    parser.add_argument("--shards", help="interpolate between these images, by their latents (default: between noises)")
    options.add_count(parser, 8, "pairs, one row each")
    parser.add_argument("--columns", type=int, default=9, help="points from one to the other (default %(default)s)")
    sampling_options.add_to(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.report.interpolation_grid import interpolation_grid
    from diffpipe.report.picture_file import require_png, save

    require_png(args.out)
    runtime = options.values(args, "precision", "device")
    with load(args.run, raw=args.raw, ema=args.ema, overrides=sampling_options.overrides(args), **runtime) as run:
        how = options.values(args, "shards", "seed", "label")
        interpolation = run.interpolate(args.n, args.columns, **how)
    if is_main_process():
        save(interpolation_grid(interpolation, run.title), args.out)
        text = f"{plural(args.n, 'pair')}, {plural(args.columns, 'point')} from one to the other: {args.out}"
        options.print_result(text, args.out, **options.about_run(args.run, run), n=args.n)
