"""`diffpipe decompress FILE RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.plural import plural
from diffpipe.process import is_main_process

_NOTES = (
    """Keys, labels and pixels are those that were compressed. The image files are PNGs, whatever they were before."""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe decompress photos.dpi runs/vae shards/decompressed", notes=_NOTES)
    parser.add_argument(
        "file", type=types.local_path, metavar="FILE", help="a file that `diffpipe compress` has written"
    )
    options.add_run(parser, "the run directory, or the checkpoint in it, that it was compressed with")
    parser.add_argument("out", type=types.local_path, metavar="OUT", help="folder for shards and their index")
    options.add_device(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import decompress

    n = decompress(args.file, args.run, args.out, device=args.device)
    if is_main_process():
        options.print_result(f"{plural(n, 'image')}: {args.out}", args.out, run=args.run, n=n, folder=args.out)
