"""`diffpipe status [DIR]`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.process import is_main_process

_NOTES = """A run is running, finished, stopped (by a signal, after a save), failed (with its error), killed (it ended
without a word), imported, or unknown: it was trained before runs recorded how they end, or run.lock is false. A damaged
directory lacks its config; a foreign one is no run. Symbolic links to runs are followed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe status runs", "diffpipe status --json | jq '.runs[].state'", notes=_NOTES)
    text = "the folder whose runs are listed, at any depth (default: runs)"
    parser.add_argument("folder", nargs="?", type=types.local_path, default="runs", metavar="DIR", help=text)


def run(args: argparse.Namespace) -> None:
    from diffpipe.experiment.run_status import statuses
    from diffpipe.report.status_table import status_table

    if not is_main_process():
        return
    found = statuses(args.folder)
    text = status_table(found) if found else f"{args.folder}: no runs"
    options.print_result(text, folder=args.folder, runs=[status._asdict() for status in found])
