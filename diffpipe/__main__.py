"""`diffpipe COMMAND …`, `python -m diffpipe COMMAND …` and `accelerate launch -m diffpipe COMMAND …` are the same."""

from __future__ import annotations

import datetime  # noqa: F401 - else pydantic-core imports it, and panics where it meets an interrupt there
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from diffpipe import __version__, output
from diffpipe.errors import RankError, UserError, as_user_error, os_error
from diffpipe.parser import CommandParser, CommonOptions, UsageError, add_common_options, take_common_options
from diffpipe.process import (
    INTERRUPTED,
    Interrupts,
    discard_output,
    end_with_launcher,
    is_main_process,
    prepare_streams,
)

# A command is a module of diffpipe.cli (a dash is an underscore there) with `add_arguments(parser)` and `run(args)`.
# `check`, a default of its parser, refuses arguments that do not go together.
# Only the one that runs is imported, and it imports torch only when it runs: so --help is quick.
COMMANDS = {
    "pack": "image folders, archives, datasets and shards → WebDataset shards with their index",
    "index": "index existing tars",
    "encode": "encode images to shards of latents by a VAE, or of codes by a vq, to train a second stage on",
    "train": "train, or resume where the run directory has checkpoints",
    "status": "the runs below a folder: their steps, losses and scores, where they train, and why they ended",
    "runs": "list what may be removed from the runs below a folder, with its size, and remove it",
    "sample": "images and a grid from a run or a checkpoint",
    "verify-resume": "check that a killed and resumed run equals an uninterrupted one",
    "export": "the weights of a run as safetensors files or a diffusers pipeline",
    "import": "a diffusers pipeline or a file of weights as a run to sample from, score or train further",
    "eval": "scores of a run, a folder or shards against reference images, with their protocol",
    "nll": "the likelihood of images under a run, in bits/dim or as a bound, with its terms",
    "attribute": "images moved in latent space along the direction from one class to another",
    "interpolate": "images between two images, through their latents, or between two noises",
    "latent-map": "a map of the latents of images, coloured by class",
    "report": "a page of one run: curves, samples, scores, what happened and the config, also while it trains",
    "compare": "runs side by side: samples, scores, likelihoods, speed and size, as a page, a table and a picture",
    "anomaly": "how well a run's score separates abnormal images from normal ones",
    "classify": "classify images by the likelihoods of a class-conditional run, with calibration",
    "doctor": "what would break a training or make it slow, before it starts",
    "config": "the resolved config, the keys in which two differ, the JSON schema, or every key with its meaning",
    "compress": "images as one file, losslessly, by the likelihood of a run",
    "decompress": "the images of a file of `compress` as shards, by the same run",
    "completion": "the script that completes commands, options and config keys in bash, zsh or fish",
}


_LONGEST = 4000  # characters of an error
BROKEN_PIPE = 141
"""The exit status where nobody reads the output any more, as of a program that SIGPIPE ends."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: the command's own, or that of its error.

    Without `argv` it is the command of this process, which then owns Ctrl-C and the standard streams. Rank 0 prints an
    error on one line. A rank with an error of its own prints it and exits at once: to shut down in order, it would have
    to wait for the others.
    """
    interrupts = Interrupts()
    if argv is None:
        interrupts.listen()
    words: list[str] = []
    common = CommonOptions()
    try:
        if argv is None:
            prepare_streams()
            end_with_launcher()
        words, common = take_common_options(sys.argv[1:] if argv is None else argv)
        output.current = output.Output(as_json=common.json, quiet=common.quiet)
        output.current.redirect(process=argv is None)
        status = _run(words, common)
        status = _finished(words, status) or status
    except UsageError as error:
        if is_main_process():
            _say(error.line)
        _finished(words, UserError.status, error.message)
        raise
    except SystemExit:  # of --help
        status = _finished(words, 0)
        if not status:
            raise
    except KeyboardInterrupt:
        status = _interrupted(words)
    except Exception as error:  # noqa: BLE001 (each ends the command, in one line)
        stopped = interrupts.seen and getattr(error, "status", None) != INTERRUPTED  # pack says more by itself
        status = _interrupted(words) if stopped else _failed(words, error, debug=common.debug)
    finally:
        output.current.restore()
        output.current = output.Output()
        interrupts.end()
    return status


def _run(words: list[str], common: CommonOptions) -> int:
    from diffpipe import plugins

    parser = CommandParser(prog="diffpipe", description="Distributed training of image generators.")
    parser.add_argument("--version", action="version", version=f"diffpipe {__version__}")
    add_common_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if words[:1] in ([name], ["completion"]):  # which completes the options of all
            _module(name).add_arguments(command)
            add_common_options(command)
    parser.set_defaults(parser=parser)
    args = parser.parse_args(words)
    for module in common.plugins:
        plugins.load(module)
    for url in common.bases:
        importlib.import_module("diffpipe.data.remote.allowed_bases").allow(url)  # imports torch
    if hasattr(args, "check"):
        args.check(args)
    return _module(args.command).run(args) or 0


def _failed(words: Sequence[str], error: Exception, *, debug: bool) -> int:
    """Report the error of a command. Returns the exit status: 1 where the error is a bug."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if isinstance(error, BrokenPipeError):  # of `| head`: nobody reads any more
        discard_output()
        return BROKEN_PIPE
    reported = as_user_error(error)
    own = reported is not error or isinstance(reported, RankError)
    exits_alone = own and not alone
    message = _one_line(_unexpected(error, debug=debug) if reported is None else str(reported))
    if debug and (is_main_process() or own or error.__cause__ is not None):
        import traceback

        traceback.print_exception(error)
    if is_main_process() or own:
        start = "\n" if exits_alone else ""  # ends the line of another rank's progress bar
        _say(f"{start}{_prog(words)}: error: {message}")
    status = 1 if reported is None else reported.status
    _finished(words, status, message)
    if exits_alone:
        os._exit(status)
    return status


def _unexpected(error: Exception, *, debug: bool) -> str:
    """An error that no user can act on: its type, its message, and the last line of diffpipe that led to it."""
    import traceback

    package = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if frame.filename.startswith(package)][-1]
    where = f"diffpipe{place.filename.removeprefix(package)}:{place.lineno}"
    where += f" on rank {os.environ['RANK']}" if "RANK" in os.environ else ""
    remedy = "please report it" if debug else "run the same command with --debug for the traceback, and report it"
    return f"unexpected {type(error).__name__} at {where}: {error}; {remedy}"


def _interrupted(words: Sequence[str]) -> int:
    if is_main_process():
        _say(f"{_prog(words)}: interrupted")
    _finished(words, INTERRUPTED, "interrupted")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(INTERRUPTED)
    return INTERRUPTED


def _finished(words: Sequence[str], status: int, error: str | None = None) -> int:
    """Write out what was printed, or with --json the document on rank 0.

    Returns 0, or an exit status where nobody reads it or it finds no room.
    """
    out = output.current
    out.restore()
    try:
        if out.as_json and is_main_process():
            print(out.document(_command(words), status, error))
        if not sys.stdout.closed:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except OSError as problem:
        discard_output()
        _say(f"{_prog(words)}: error: stdout: {os_error(problem)}")
        return UserError.status
    return 0


def _prog(words: Sequence[str]) -> str:
    """The program and its command, as messages begin."""
    command = _command(words)
    return "diffpipe" if command is None else f"diffpipe {command}"


def _command(words: Sequence[str]) -> str | None:
    return next((word for word in words if word in COMMANDS), None)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _one_line(message: str) -> str:
    """The message on one line, of bounded length."""
    words = " ".join(message.split())
    shown = output.printable(words)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"diffpipe.cli.{command.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
