"""A summary of an index, in numbers and a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffpipe.data.index.scan import dotted_names
from diffpipe.data.index.shard_index import INDEX_NAME, ShardIndex
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, load
from diffpipe.plural import plural

_PICKLES = {"pickle", "pkl", "pt", "pth", "pyd"}


class ShardsSummary(NamedTuple):
    """The numbers of shards, samples and bytes in a folder, and the fingerprint."""

    folder: Path
    shards: int
    samples: int
    bytes: int
    fingerprint: str

    def __str__(self) -> str:
        counts = f"{plural(self.shards, 'shard')}, {plural(self.samples, 'sample')}, {plural(self.bytes, 'byte')}"
        return f"{self.folder}: {counts}, fingerprint {self.fingerprint}"


def describe(folder: Path, names: list[str] | None) -> ShardsSummary:
    """The named shards of an indexed folder, or all shards of its index, in numbers."""
    patterns = str(folder) if names is None else [str(folder / name) for name in names]
    shards = load(patterns, verify_limit=0)  # they were hashed a moment ago
    size = sum(shard.bytes for shard in shards.shards)
    return ShardsSummary(folder, len(shards.paths), shards.total, size, shards.fingerprint)


def notes(folder: Path) -> list[str]:
    """A line on each kind of member in the index of a folder that is sometimes missing or may be a pickle."""
    index = ShardIndex(str(folder / INDEX_NAME))
    dotted = dotted_names(index.extensions, [*IMAGE_EXTENSIONS, "cls"])
    found = [*missing_members(index), *([] if dotted is None else [dotted]), *pickles(index)]
    return [f"{folder}: {note}" for note in found]


def missing_members(index: ShardIndex) -> Iterator[str]:
    """A sentence on each kind of member that most samples have and some lack. All image extensions are one kind."""
    total = sum(shard["samples"] for shard in index.shards.values())
    images = [extension for extension in index.extensions if extension in IMAGE_EXTENSIONS]
    for kind in [images, *([extension] for extension in index.extensions if extension not in images)]:
        lacking, first = 0, ""
        start = 0
        for name, shard in index.shards.items():
            if sum(shard["members"].get(extension, 0) for extension in kind) < shard["samples"]:
                without = np.flatnonzero(~index.having(kind, start, start + shard["samples"]))
                lacking += len(without)
                if len(without) and not first:
                    first = f"{index.sample(start + int(without[0])).key} in {name}"
            start += shard["samples"]
        if kind and 0 < 2 * lacking < total:
            member = "image" if kind is images else f".{kind[0]}"
            yield (
                f"{plural(lacking, f'sample of {total} has', f'samples of {total} have')} no {member}, the first of "
                f"them {first}"
            )


def pickles(index: ShardIndex) -> Iterator[str]:
    """A sentence on each extension that is used for pickles."""
    counts = Counter[str]()
    for shard in index.shards.values():
        counts.update({e: n for e, n in shard["members"].items() if e.rpartition(".")[2] in _PICKLES})
    for extension, count in sorted(counts.items()):
        yield (
            f"{plural(count, f'.{extension} member')} may hold pickles, which run code when loaded: diffpipe never "
            "reads them"
        )
