"""`diffpipe index PATH…`"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffpipe.data.index.parallel_scan import remote_shards
from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.data.index.shard_index import INDEX_NAME, Table, write_index, write_remote_index
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, expand, load
from diffpipe.data.remote.urls import is_remote
from diffpipe.errors import UserError

_PICKLES = {"pickle", "pkl", "pt", "pth", "pyd"}


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


def describe(folder: Path, names: list[str] | None) -> str:
    """One line on the named shards of an indexed folder, or on all that its index names."""
    places = str(folder) if names is None else [str(folder / name) for name in names]
    shards = load(places, verify_limit=0)  # they were hashed a moment ago
    size = sum(shard.bytes for shard in shards.shards)
    return (
        f"{folder}: {len(shards.paths)} shards, {shards.total} samples, {size} bytes, fingerprint {shards.fingerprint}"
    )


def _report(folder: Path, line: str) -> None:
    print(line)
    table = Table(str(folder / INDEX_NAME))
    for note in [*missing_members(table), *_pickles(table)]:
        print(f"{folder}: {note}")


def missing_members(table: Table) -> Iterator[str]:
    """A sentence on each kind of member that most samples have and some lack. All images are of one kind."""
    total = sum(shard["samples"] for shard in table.shards.values())
    images = [extension for extension in table.extensions if extension in IMAGE_EXTENSIONS]
    for kind in [images, *([extension] for extension in table.extensions if extension not in images)]:
        lacking, first = 0, ""
        start = 0
        for name, shard in table.shards.items():
            if sum(shard["members"].get(extension, 0) for extension in kind) < shard["samples"]:
                found = np.flatnonzero(~table.having(kind, start, start + shard["samples"]))
                lacking += len(found)
                if len(found) and not first:
                    first = f"{table.sample(start + int(found[0])).key} in {name}"
            start += shard["samples"]
        if kind and 0 < 2 * lacking < total:
            word = "image" if kind is images else f".{kind[0]}"
            yield f"{lacking} of {total} samples have no {word}, the first of them {first}"


def _pickles(table: Table) -> Iterator[str]:
    counts = Counter[str]()
    for shard in table.shards.values():
        counts.update({e: n for e, n in shard["members"].items() if e.rpartition(".")[2] in _PICKLES})
    for extension, count in sorted(counts.items()):
        yield f"{count} .{extension} members may be pickles, which run code when loaded: diffpipe never reads them"


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value
