"""`diffpipe COMMAND …`, `python -m diffpipe COMMAND …` and `accelerate launch -m diffpipe COMMAND …` are the same."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from diffpipe import __version__
from diffpipe.errors import RankError, UserError

# A command is a module of diffpipe.cli (a dash is an underscore there) with `add_arguments(parser)` and `run(args)`;
# only the one asked for is loaded.
COMMANDS = {
    "pack": "image folders, archives, datasets and shards → WebDataset shards with their index",
    "index": "index tars that exist already",
    "encode": "the latents of images, by a VAE's run, as shards to train a diffusion on",
    "train": "train, or go on where the run directory left off",
    "sample": "images and a grid from a run or a checkpoint",
    "verify-resume": "proves on this machine that a training that was killed and resumed is the one that was not",
    "export": "the weights of a run as safetensors files",
    "eval": "scores of a run, a folder or shards against reference images, with their protocol",
    "attribute": "images moved along the direction in the latents from one class to another",
    "interpolate": "images on the way from one image to another, through the latents or the noise",
    "latent-map": "a map of the latents of images, coloured by their class",
    "compare": "runs side by side: samples, scores, likelihoods, speed and size, as a page, a table and a picture",
    "anomaly": "how well a run's score tells abnormal images from normal ones",
    "classify": "the classes of images by the likelihoods of a class-conditional run, and how far to trust them",
    "config": "the resolved config, its JSON schema, or every key with its meaning",
    "nll": "how well a run explains images: the likelihood in bits/dim or a bound on it, with its terms",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, or what the command says, or that of a UserError.

    Rank 0 prints the error on one line. What one process of several has met alone, it prints itself, and leaves at
    once: to end in good order would be to wait for the others.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="diffpipe", description="Distributed training of image generators.")
    parser.add_argument("--version", action="version", version=f"diffpipe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in words[:1]:
            _module(name).add_arguments(command)
    args = parser.parse_args(words)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        return _module(args.command).run(args) or 0
    except UserError as error:
        leaves = isinstance(error, RankError)
        if os.environ.get("RANK", "0") == "0" or leaves:
            apart = "\n" if leaves and not alone else ""  # another process's progress bar has no end of line yet
            said = f"{apart}diffpipe {args.command}: error: {' '.join(str(error).split())}"
            print(said, file=sys.stderr, flush=True)  # noqa: T201
        if leaves and not alone:
            os._exit(error.status)
        return error.status
    except Exception:
        if alone:
            raise
        traceback.print_exc()
        os._exit(1)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"diffpipe.cli.{command.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
