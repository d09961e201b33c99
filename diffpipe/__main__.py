"""`diffpipe COMMAND …`, `python -m diffpipe COMMAND …` and `accelerate launch -m diffpipe COMMAND …` are the same."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from diffpipe import __version__, plugins
from diffpipe.errors import RankError, UserError

# A command is a module of diffpipe.cli (a dash is an underscore there) with `add_arguments(parser)` and `run(args)`.
# Only the one that runs is imported, and it imports torch only when it runs: so --help is quick.
COMMANDS = {
    "pack": "image folders, archives, datasets and shards → WebDataset shards with their index",
    "index": "index existing tars",
    "encode": "encode images to shards of latents by a VAE, to train a latent diffusion on",
    "train": "train, or resume where the run directory has checkpoints",
    "sample": "images and a grid from a run or a checkpoint",
    "verify-resume": "check that a killed and resumed run equals an uninterrupted one",
    "export": "the weights of a run as safetensors files",
    "eval": "scores of a run, a folder or shards against reference images, with their protocol",
    "attribute": "images moved in latent space along the direction from one class to another",
    "interpolate": "images between two images, through their latents, or between two noises",
    "latent-map": "a map of the latents of images, coloured by class",
    "compare": "runs side by side: samples, scores, likelihoods, speed and size, as a page, a table and a picture",
    "anomaly": "how well a run's score separates abnormal images from normal ones",
    "classify": "classify images by the likelihoods of a class-conditional run, with calibration",
    "config": "the resolved config, its JSON schema, or every key with its meaning",
    "nll": "the likelihood of images under a run, in bits/dim or as a bound, with its terms",
}


_LONGEST = 4000  # characters of an error
BASE_HELP = (
    "a remote folder that an index may refer to, such as https://host/shards?token=${TOKEN}; may be given several times"
)
PLUGIN_HELP = "a module, or the path of a .py file, that adds stages, networks, …; may be given several times"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: the command's own, or that of a UserError.

    Rank 0 prints the error on one line. A rank with an error of its own prints it and exits at once: to shut down in
    order, it would have to wait for the others.
    """
    words, modules = _without_option("--plugin", list(sys.argv[1:] if argv is None else argv))
    words, bases = _without_option("--allow-base", words)
    parser = argparse.ArgumentParser(prog="diffpipe", description="Distributed training of image generators.")
    parser.add_argument("--version", action="version", version=f"diffpipe {__version__}")
    _add_common_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps the lines of the example
        )
        if name in words[:1]:
            _add_common_options(command)
            _module(name).add_arguments(command)
    args = parser.parse_args(words)
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    try:
        for module in modules:
            plugins.load(module)
        for url in bases:
            importlib.import_module("diffpipe.data.remote.allowed_bases").allow(url)  # imports torch
        return _module(args.command).run(args) or 0
    except UserError as error:
        exits_alone = isinstance(error, RankError) and not alone
        if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
            start = "\n" if exits_alone else ""  # ends the line of another rank's progress bar
            message = f"{start}diffpipe {args.command}: error: {_one_line(str(error))}"
            print(message, file=sys.stderr, flush=True)  # noqa: T201
        if exits_alone:
            os._exit(error.status)
        return error.status
    except Exception:
        if alone:
            raise
        traceback.print_exc()
        os._exit(1)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that every command has; `_without_option` has taken them."""
    parser.add_argument("--plugin", metavar="MODULE", help=PLUGIN_HELP)
    parser.add_argument("--allow-base", metavar="URL", help=BASE_HELP)


def _without_option(option: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The words without `OPTION VALUE`, wherever it stands, and the values."""
    rest, values = [], []
    while words:
        word = words.pop(0)
        if word == option and words:
            values.append(words.pop(0))
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, values


def _one_line(message: str) -> str:
    """The message on one line that a terminal shows as it is: a name in a file may hold its control characters."""
    words = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"diffpipe.cli.{command.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
