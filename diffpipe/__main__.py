"""`diffpipe COMMAND …`, `python -m diffpipe COMMAND …` and `accelerate launch -m diffpipe COMMAND …` are the same."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from diffpipe import __version__
from diffpipe.contract import RankError, UserError

# A command is a module of diffpipe.cli with `add_arguments(parser)` and `run(args)`; only the one asked for is loaded.
COMMANDS = {
    "pack": "an image folder or idx files → WebDataset shards with their index",
    "index": "index tars that exist already",
    "encode": "the latents of images, by a VAE's run, as shards to train a diffusion on",
    "train": "train, or go on where the run directory left off",
    "sample": "images and a grid from a run or a checkpoint",
    "export": "the weights of a run as safetensors files",
    "eval": "scores of a run, a folder or shards against reference images, with their protocol",
    "anomaly": "how well a run's score tells abnormal images from normal ones",
    "nll": "how well a run explains images: the likelihood in bits/dim or a bound on it, with its terms",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or 2 after a UserError, whose message rank 0 prints on one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="diffpipe", description="Distributed training of image generators.")
    parser.add_argument("--version", action="version", version=f"diffpipe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in words[:1]:
            importlib.import_module(f"diffpipe.cli.{name}").add_arguments(command)
    args = parser.parse_args(words)
    try:
        importlib.import_module(f"diffpipe.cli.{args.command}").run(args)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
            print(f"diffpipe {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
