"""Options that several commands share. Nothing here imports torch, so `--help` is quick."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffpipe import output
from diffpipe.cli import argument_types as types
from diffpipe.errors import UserError
from diffpipe.files import user_path
from diffpipe.machine import process_warnings, processor_count
from diffpipe.parser import add_common_options
from diffpipe.run_folder import is_run

if TYPE_CHECKING:
    from diffpipe.loaded_run import LoadedRun

OVERRIDES = "replaces a value of the file: train.steps=9"
"""The help of `key=value` words."""
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


def example(*commands: str, notes: str = "") -> str:
    """The end of a command's --help, which is printed as it is: notes, filled to the line, and examples."""
    lines = ["example:", *(f"  {command}" for command in commands)]
    return "\n".join([*textwrap.wrap(notes, 100), *([""] if notes else []), *lines])


def add_action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """The parser of one action of a command, such as `config show`. actions: what `add_subparsers` returns."""
    parser = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    add_common_options(parser)
    return parser


def print_result(text: str, *files: Path, **values: Any) -> None:
    """Print the result on stdout, and on stderr the files that hold it. values: the same result for --json."""
    output.current.result(text, *files, **values)


def about_run(path: str | Path, run: LoadedRun) -> dict[str, Any]:
    """The run at `path`, the step and the kind of its weights, for --json."""
    return {"run": path, "step": run.step, "weights": run.weights}


def print_notes(notes: Iterable[str]) -> None:
    """Print remarks on a result, on stderr."""
    for note in notes:
        output.current.note(note)


def values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """These options by name, for a library call that has arguments of the same names."""
    return {name: getattr(args, name) for name in names}


def worker_processes(args: argparse.Namespace) -> int:
    """--workers, or as many as there are processors. Raises UserError where the machine cannot hold them."""
    if args.workers is None:
        return processor_count()
    for sentence in process_warnings("--workers", args.workers):
        output.current.remark(f"warning: {sentence}")
    return args.workers


def add_run(parser: argparse.ArgumentParser, text: str = "a run directory, or one checkpoint in it") -> None:
    parser.add_argument("run", type=types.local_path, metavar="RUN", help=text)
    parser.set_defaults(check=require_run_in_its_place)


def require_run_in_its_place(args: argparse.Namespace) -> None:
    """Raise UserError where the argument RUN is no run and another argument is one: they were swapped."""
    others = {name.upper(): value for name in ("file", "shards", "out") if (value := getattr(args, name, None))}
    with contextlib.suppress(OSError):  # such as a pattern of shards that is too long for a name
        runs = [name for name, value in others.items() if not is_run(args.run) and is_run(user_path(value))]
        if runs:
            other = f"{runs[0]} is {others[runs[0]]}, which looks like one"
            raise UserError(f"RUN is {args.run}, which is no run; {other}: swap them")


def add_shards(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("shards", metavar="SHARDS", help=text)


def add_count(parser: argparse.ArgumentParser, default: int, text: str) -> None:
    parser.add_argument("--n", type=int, default=default, help=f"{text} (default %(default)s)")


def add_measured_count(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--n", type=int, help=f"{text} (default 1000, or all where they are fewer)")


def add_seed(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--seed", type=int, default=0, help=f"{text} (default %(default)s)")


def add_weights(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    text = "length of the moving average, such as 0.1, of a run with ema.kind=power (default: the first it keeps)"
    choice.add_argument("--ema", type=float, metavar="SIGMA_REL", help=text)


def add_runtime(parser: argparse.ArgumentParser, precision: str = "fp32") -> None:
    """--precision and --device, as `Runtime.start` takes them."""
    text = "precision of the networks (default %(default)s)"
    parser.add_argument("--precision", choices=PRECISIONS, default=precision, help=text)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    text = "where the networks run (default %(default)s: CUDA where there is one)"
    parser.add_argument("--device", choices=DEVICES, default="auto", help=text)


def add_output_file(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--out", type=types.local_path, metavar="FILE", help=f"{text} (default: a file in the run's scores/)"
    )
