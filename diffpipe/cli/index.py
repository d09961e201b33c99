"""`diffpipe index PATH…`"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.data.index import expand, load
from diffpipe.data.table import write_index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "One index is written beside the shards of each folder and covers every *.tar in it. "
        "Run it again after a shard has changed; class names are kept."
    )
    parser.add_argument("path", nargs="+", metavar="PATH", help="a tar, a folder of tars, a glob or a brace pattern")


def run(args: argparse.Namespace) -> None:
    folders: dict[Path, list[str]] = {}
    for path in map(Path, expand(args.path)):
        folders.setdefault(path.parent, []).append(path.name)
    for folder, names in folders.items():
        write_index(folder, extra=names)
        print(describe(folder, names))


def describe(folder: Path, names: list[str]) -> str:
    """One line on the named shards of an indexed folder."""
    shards = load([str(folder / name) for name in names], verify_limit=0)  # they were hashed a moment ago
    size = sum(shard.bytes for shard in shards.shards)
    return (
        f"{folder}: {len(shards.paths)} shards, {shards.total} samples, {size} bytes, fingerprint {shards.fingerprint}"
    )
