"""`diffpipe runs prune [DIR]`."""

from __future__ import annotations

import argparse

from diffpipe import output
from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.output import printable
from diffpipe.plural import plural
from diffpipe.process import is_main_process

_NOTES = """What may go: checkpoints older than the newest valid ones that a run keeps, those that were found damaged,
and what killed jobs have left. What stays: a run that trains, two valid checkpoints in any case, those at multiples of
checkpoint.keep_every, those that another run there or beside DIR needs (a codec, a guide, initial weights), snapshots
of averages, and whatever is not known. Not known is who needs a checkpoint from elsewhere: files of `diffpipe
compress`, and latents that no run has trained on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe runs prune runs", "diffpipe runs prune runs --keep-last 2 --yes", notes=_NOTES
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "list what may be removed from runs, with its size, and remove it with --yes"
    prune = options.add_action(actions, "prune", text)
    text = "the folder whose runs are looked at, at any depth (default: runs)"
    prune.add_argument("folder", nargs="?", type=types.local_path, default="runs", metavar="DIR", help=text)
    text = "newest valid checkpoints that stay, 2 or more (default: checkpoint.keep_last of each run)"
    prune.add_argument("--keep-last", type=types.natural, metavar="N", help=text)
    prune.add_argument("--yes", action="store_true", help="remove what is listed")


def run(args: argparse.Namespace) -> None:
    from diffpipe.experiment.prune import prunable_runs, remove

    if not is_main_process():
        return
    runs = prunable_runs(args.folder, args.keep_last)
    if args.yes:
        runs = [remove(run) for run in runs]
    entries = [entry for run in runs for entry in run.removable]
    for run in runs:
        if run.left is not None:
            output.current.note(f"{printable(str(run.run))} is left as it is: {run.left}")
        for checkpoint, by in run.needed:
            output.current.note(f"{printable(str(checkpoint))} stays: {printable(str(by))} needs it")
        for complaint in run.complaints:
            output.current.note(f"{printable(complaint)}: it is not removed; run the same command again")
    total = sum(entry.bytes for entry in entries)
    lines = [f"{entry.bytes / 1e6:>10,.1f} MB  {printable(str(entry.path))}: {entry.reason}" for entry in entries]
    what = f"{plural(len(entries), 'file or directory', 'files and directories')}, {total / 1e6:,.1f} MB"
    remedy = "" if args.yes else "; --yes removes them"
    lines.append(f"{what}{' removed' if args.yes else ' may go'}{remedy}" if entries else "nothing to remove")
    about = {"removable": [entry._asdict() for entry in entries], "bytes": total, "removed": args.yes and entries != []}
    options.print_result("\n".join(lines), folder=args.folder, **about)
