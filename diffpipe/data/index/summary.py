"""An index in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffpipe.data.index.shard_index import Table
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, load

_PICKLES = {"pickle", "pkl", "pt", "pth", "pyd"}


def describe(folder: Path, names: list[str] | None) -> str:
    """One line on the named shards of an indexed folder, or on all that its index names."""
    places = str(folder) if names is None else [str(folder / name) for name in names]
    shards = load(places, verify_limit=0)  # they were hashed a moment ago
    size = sum(shard.bytes for shard in shards.shards)
    return (
        f"{folder}: {len(shards.paths)} shards, {shards.total} samples, {size} bytes, fingerprint {shards.fingerprint}"
    )


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


def pickles(table: Table) -> Iterator[str]:
    counts = Counter[str]()
    for shard in table.shards.values():
        counts.update({e: n for e, n in shard["members"].items() if e.rpartition(".")[2] in _PICKLES})
    for extension, count in sorted(counts.items()):
        yield f"{count} .{extension} members may be pickles, which run code when loaded: diffpipe never reads them"
