"""The shards of a data set: found by path, glob or brace pattern, held against their indices, looked up by sample."""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from webdataset.shardlists import expand_urls

from diffpipe.contract import UserError
from diffpipe.data.table import INDEX_NAME, Sample, Table

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
VERIFY_LIMIT = 1 << 30


class Shard(NamedTuple):
    """One tar of a set. members: how many samples have each extension; first: its first sample in its index.

    classes: 1 + the largest label, or None where some sample has no `.cls` that is an integer ≥ 0.
    """

    path: str
    bytes: int
    sha256: str
    samples: int
    members: dict[str, int]
    classes: int | None
    first: int
    table: Table


class ShardSet:
    """An ordered set of indexed shards, the unit that a run or a score names by its fingerprint."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self.paths = [shard.path for shard in self.shards]
        self.counts = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        self.total = int(self.counts.sum())
        names = {tuple(s.table.classes) for s in self.shards if s.table.classes is not None}
        if len(names) > 1:
            raise UserError(f"{self.paths[0]} and others: their indices name different classes; use shards that agree")
        self.classes: list[str] | None = list(names.pop()) if names else None

    @property
    def listing(self) -> str:
        """The ordered names, lengths and hashes of the shards, as JSON."""
        return json.dumps([[Path(s.path).name, s.bytes, s.sha256] for s in self.shards])

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the listing: the same bytes in the same order have the same one."""
        return hashlib.sha256(self.listing.encode()).hexdigest()

    def lacking(self, *extensions: str) -> str | None:
        """The first shard in which some sample has a member with none of the `extensions`, or None."""
        return next((s.path for s in self.shards if sum(s.members.get(e, 0) for e in extensions) < s.samples), None)

    def has(self, extension: str) -> bool:
        """Whether every sample has a member with this extension."""
        return self.lacking(extension) is None

    def sample(self, shard: int, i: int) -> Sample:
        """Sample i of a shard, in constant time."""
        entry = self.shards[shard]
        return entry.table.sample(entry.first + i)


def load(patterns: str | Sequence[str], verify_limit: int = VERIFY_LIMIT) -> ShardSet:
    """The indexed shards that `patterns` name: tars, directories, globs, brace patterns, or a list of them, in order.

    The lengths of all tars are held against the index; their sha256 too where the set has at most `verify_limit` bytes
    (each member's crc32 is checked at every read in any case). Raises UserError that names the file and the remedy.
    """
    paths = expand(patterns)
    tables: dict[str, Table] = {}
    first: dict[str, dict[str, int]] = {}
    shards: list[Shard] = []
    for path in paths:
        directory, name = str(Path(path).parent), Path(path).name
        if directory not in tables:
            table = tables[directory] = Table(str(Path(directory) / INDEX_NAME))
            ends = itertools.accumulate((shard["samples"] for shard in table.shards.values()), initial=0)
            first[directory] = dict(zip(table.shards, ends, strict=False))
        entry = tables[directory].shards.get(name)
        if entry is None:
            raise UserError(f"{path} is not in the index beside it; index it with: diffpipe index {directory}")
        size = Path(path).stat().st_size
        if size != entry["bytes"]:
            raise UserError(
                f"{path} has {size} bytes, but {entry['bytes']} in the index: it was changed or cut after indexing; "
                f"restore it, or run: diffpipe index {directory}"
            )
        shards.append(
            Shard(
                path=path,
                bytes=size,
                sha256=entry["sha256"],
                samples=entry["samples"],
                members=entry["members"],
                classes=entry["classes_count"],
                first=first[directory][name],
                table=tables[directory],
            )
        )
    if sum(shard.bytes for shard in shards) <= verify_limit:
        for shard in shards:
            _verify(shard)
    return ShardSet(shards)


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The paths of the tars that `patterns` name, each one once and present. Raises UserError."""
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "://" in pattern:
            raise UserError(f"{pattern}: remote shards are not read yet; copy them to a local folder and give its path")
        home = str(Path(pattern).expanduser())
        for word in [home] if Path(home).exists() else expand_urls(home):
            if Path(word).is_dir():
                found = sorted(str(path) for path in Path(word).glob("*.tar"))
            elif Path(word).exists():
                found = [word]
            else:
                found = sorted(glob.glob(word))  # noqa: PTH207 (pathlib has no absolute patterns)
            if not found:
                raise UserError(f"{word}: no such shards; give a tar, a folder of *.tar, a glob or a brace pattern")
            paths.extend(found)
    if not paths:
        raise UserError("no shards are named; give a tar, a folder of *.tar, a glob or a brace pattern")
    twice = next((path for path, n in Counter(map(os.path.realpath, paths)).items() if n > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name each shard once")
    return paths


def number_of_classes(shard_set: ShardSet) -> int:
    """How many classes label the set: the class names in the index, else 1 + the largest label; 0 without labels."""
    return len(shard_set.classes or ()) or max(shard.classes or 0 for shard in shard_set.shards)


def _verify(shard: Shard) -> None:
    with Path(shard.path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise UserError(
            f"{shard.path} was changed after indexing: its sha256 is not the index's; restore it, "
            f"or run: diffpipe index {Path(shard.path).parent}"
        )
