"""`diffpipe index PATH…`"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from diffpipe.data.index.parallel_scan import remote_shards
from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.data.index.shard_index import INDEX_NAME, ShardIndex
from diffpipe.data.index.shard_set import expand
from diffpipe.data.index.summary import describe, missing_members, pickles
from diffpipe.data.index.write_index import write_index, write_remote_index
from diffpipe.data.remote.urls import is_remote
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "One index is written beside the shards of each folder and covers every *.tar in it; that of remote shards, "
        "which are read through once and not kept, is written to --out. Run it again after a shard has changed: class "
        "names are kept. Lists of wds2idx (NAME.idx) and Energon (NAME.tar.idx) beside a tar are held against it."
    )
    parser.add_argument(
        "path", nargs="+", metavar="PATH", help="a tar, a folder of tars, a glob, a brace pattern, or a URL of these"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the index of remote shards goes")
    parser.add_argument(
        "--workers", type=_natural, metavar="N", help="processes that scan a shard each (as many as there are cores)"
    )
    parser.add_argument(
        "--max-member",
        type=_natural,
        default=MAX_MEMBER,
        metavar="BYTES",
        help=f"refuse a tar with a larger member ({MAX_MEMBER})",
    )


def run(args: argparse.Namespace) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # one process of a launched job does the work, with workers of its own
    workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
    remote = [place for place in args.path if is_remote(place)]
    if remote:
        if args.out is None or len(remote) < len(args.path):
            raise UserError(
                "the index of remote shards is written to a folder of its own; name it with --out, and index local "
                "folders by another command"
            )
        write_remote_index(remote_shards(remote), args.out, workers=workers, max_member=args.max_member)
        _report(args.out, describe(args.out, None))
        return
    if args.out is not None:
        raise UserError("--out is for remote shards; the index of local ones is written beside them")
    folders: dict[Path, list[str]] = {}
    for path in map(Path, expand(args.path)):
        folders.setdefault(path.parent, []).append(path.name)
    for folder, names in folders.items():
        write_index(folder, extra=names, workers=workers, max_member=args.max_member)
        _report(folder, describe(folder, names))


def _report(folder: Path, line: str) -> None:
    print(line)
    table = ShardIndex(str(folder / INDEX_NAME))
    for note in [*missing_members(table), *pickles(table)]:
        print(f"{folder}: {note}")


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value
