"""`diffpipe index PATH…`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffpipe import output
from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.errors import UserError
from diffpipe.process import is_main_process

if TYPE_CHECKING:
    from diffpipe.data.index.index_changes import IndexChanges


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe index shards/train shards/test",
        "diffpipe index 'https://host/train-{000..099}.tar' --out shards/remote",
        notes="One index is written beside the shards of each folder and covers every *.tar in it. Remote shards are "
        "read through once and not kept; their index is written to --out. So is that of a local folder that cannot be "
        "written, with links to its shards; name --out to train or score then. Run it again after a shard has changed: "
        "class names are kept. Lists of wds2idx (NAME.idx) and Energon (NAME.tar.idx) beside a tar are checked.",
    )
    add = parser.add_argument
    add("path", nargs="+", metavar="PATH", help="a tar, a folder of tars, a glob, a brace pattern, or a URL of these")
    out = (
        "the folder for the index: of remote shards, or of a folder that cannot be written; shards are read there then"
    )
    add("--out", type=types.local_path, metavar="DIR", help=out)
    text = "processes that scan one shard each (default: as many as there are processors)"
    add("--workers", type=types.natural, metavar="N", help=text)
    add(
        "--max-member",
        type=types.natural,
        metavar="BYTES",
        help="refuse a tar with a larger member (default 268435456)",
    )


def run(args: argparse.Namespace) -> None:
    from diffpipe.data.index.parallel_scan import remote_shards
    from diffpipe.data.index.patterns import expand_patterns
    from diffpipe.data.index.scan import MAX_MEMBER
    from diffpipe.data.index.write_index import write_index, write_remote_index
    from diffpipe.data.remote.urls import is_remote

    if not is_main_process():
        return  # one process of a launched job indexes, with workers of its own
    workers = options.worker_processes(args)
    max_member = MAX_MEMBER if args.max_member is None else args.max_member
    remote = [path for path in args.path if is_remote(path)]
    if remote:
        if args.out is None or len(remote) < len(args.path):
            raise UserError(
                "the index of remote shards is written to a folder of its own; name it with --out, and index local "
                "folders by another command"
            )
        changes = write_remote_index(remote_shards(remote), args.out, workers=workers, max_member=max_member)
        _report(args.out, None, changes)
        return
    folders: dict[Path, list[str]] = {}
    for path in map(Path, expand_patterns(args.path)):
        folders.setdefault(path.parent, []).append(path.name)
    if args.out is not None and len(folders) > 1:
        raise UserError("--out takes the index of one folder; index the others by another command")
    for folder, names in folders.items():
        changes = write_index(folder, extra=names, out=args.out, workers=workers, max_member=max_member)
        _report(args.out or folder, names, changes)


def _report(folder: Path, names: list[str] | None, changes: IndexChanges | None) -> None:
    from diffpipe.data.index.shard_index import INDEX_NAME
    from diffpipe.data.index.summary import describe, notes

    shards, remarks = describe(folder, names), notes(folder)
    since = [] if changes is None else [f"{folder}: since the last index, {changes}"]
    about = {"shards": [shards._asdict()], "remarks": remarks}
    changed = [{"folder": folder, **changes._asdict()}] if changes else []
    options.print_result("\n".join([str(shards), *since, *remarks]), **about, changes=changed)
    output.current.add(folder / INDEX_NAME)
