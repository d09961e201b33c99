"""`diffpipe compress RUN SHARDS OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.process import is_main_process

_NOTES = """A VAE, a flow and a diffusion of pixels code by bits-back, an autoregressive run by its conditional
distributions. The file is decoded by the same run on the same kind of machine, by any number of processes. The images
must have the run's size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe compress runs/vae shards/photos photos.dpi --n 500", notes=_NOTES)
    options.add_run(parser)
    options.add_shards(parser, "images to compress; their keys and labels are kept, other members are not")
    parser.add_argument("out", type=types.local_path, metavar="OUT", help="the file to write")
    parser.add_argument("--n", type=types.positive, help="images, the same that `nll --n` takes (default: all)")
    text = "images of a part that is coded by itself, on one process (default 256)"
    parser.add_argument("--block", type=types.positive, default=256, metavar="N", help=text)
    text = "images that go through the networks together (default 32)"
    parser.add_argument("--batch", type=types.positive, default=32, metavar="N", help=text)
    text = "network evaluations per image of a diffusion, along a shorter chain (default: one at every timestep)"
    parser.add_argument("--steps", type=types.positive, metavar="K", help=text)
    text = "decode each block again before the file is written, in as much time again"
    parser.add_argument("--verify", action="store_true", help=text)
    text = "leave out what `nll` says of these images, and their size as PNG, WebP and JPEG XL"
    parser.add_argument("--no-comparison", dest="compare", action="store_false", help=text)
    options.add_seed(parser, "seed of the initial bits and of the likelihood's noise")
    options.add_weights(parser)
    options.add_device(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load

    how = options.values(args, "n", "block", "batch", "steps", "verify", "compare", "seed")
    with load(args.run, raw=args.raw, ema=args.ema, precision="fp32", device=args.device) as run:
        report = run.compress(args.shards, args.out, **how)
    if is_main_process():
        options.print_result(report.table(), args.out, **options.about_run(args.run, run), **report.tree())
