"""The shards of a data set: found by path, glob or brace pattern, held against their indices, looked up by sample."""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand
from webdataset.shardlists import expand_urls

from diffpipe.data.index.shard_index import INDEX_NAME, Places, Sample, Table
from diffpipe.data.remote.cache import Cache, Item, Remote
from diffpipe.data.remote.storage import MissingError
from diffpipe.data.remote.urls import beside, is_remote, parse, redacted
from diffpipe.data.remote.urls import folder as folder_of
from diffpipe.errors import UserError
from diffpipe.files import sha256_of

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
VERIFY_LIMIT = 1 << 30
_NONE = "no shards are named; give a tar, a folder of *.tar, a URL of one, a glob or a brace pattern"


class Shard(NamedTuple):
    """One tar of a set. members: how many samples have each extension; first: its first sample in its index.

    path: of a remote one the URL, without any secret; how to get at its bytes is what `remote` says.

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
    remote: Remote | None = None


class ShardSet:
    """An ordered set of indexed shards, the unit that a run or a score names by its fingerprint."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self.paths = [shard.path for shard in self.shards]
        self.counts = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        self.total = int(self.counts.sum())
        tables = {id(shard.table): shard.table for shard in self.shards}
        number = {each: i for i, each in enumerate(tables)}
        self._tables = list(tables.values())
        self._table = np.array([number[id(shard.table)] for shard in self.shards])
        self._first = np.array([shard.first for shard in self.shards], dtype=np.int64)
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

    def places(self, shards: np.ndarray, indices: np.ndarray, extensions: Sequence[str]) -> Places:
        """Where the members of samples lie, each int64 [b], that have the first of the extensions."""
        found = Places(*np.empty((3, len(shards)), dtype=np.int64))
        for table, here, samples in self._by_table(shards, indices):
            for column, part in zip(found, table.places(samples, extensions), strict=True):
                column[here] = part
        return found

    def keys(self, shards: np.ndarray, indices: np.ndarray) -> list[str]:
        """The keys of samples, int64 [b] both."""
        keys = [""] * len(shards)
        for table, here, samples in self._by_table(shards, indices):
            for i, key in zip(here.tolist(), table.keys(samples), strict=True):
                keys[i] = key
        return keys

    def _by_table(self, shards: np.ndarray, indices: np.ndarray) -> Iterator[tuple[Table, np.ndarray, np.ndarray]]:
        """The tables of samples: of each, which of them it holds, and their numbers in it."""
        numbers, samples = self._table[shards], self._first[shards] + indices
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            yield self._tables[number], here, samples[here]


def load(patterns: str | Sequence[str], verify_limit: int = VERIFY_LIMIT, *, cache: Cache | None = None) -> ShardSet:
    """The indexed shards that `patterns` name, in order: tars, directories, globs, brace patterns, or a list of them.

    They may be URLs: an index lies beside the tars there, or in the local directory that is given in their place. What
    is remote is read through `cache`, by default that of this machine.

    The lengths of all local tars are held against the index; their sha256 too where they have at most `verify_limit`
    bytes together (each member's crc32 is checked at every read in any case, and a remote tar's sha256 when it is
    fetched). Raises UserError that names the file and the remedy.
    """
    indices = _Indices(cache or Cache())
    words = [patterns] if isinstance(patterns, str) else patterns
    shards = [shard for word in words for shard in indices.shards(word)]
    if not shards:
        raise UserError(_NONE)
    _check_once([os.path.realpath(s.path) if s.remote is None else s.remote.item.url for s in shards])
    local = [shard for shard in shards if shard.remote is None]
    if sum(shard.bytes for shard in local) <= verify_limit:
        for shard in local:
            _verify(shard)
    return ShardSet(shards)


class _Indices:
    """The indices of folders, local and remote, each read once."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self._tables: dict[str, tuple[Table, dict[str, int]]] = {}

    def shards(self, pattern: str) -> list[Shard]:
        """The shards that one pattern names."""
        if is_remote(pattern):
            return [shard for url in braceexpand(pattern) for shard in self._remote(url)]
        found: list[Shard] = []
        for word in _words(pattern):
            folder, name = (word, "*") if Path(word).is_dir() else (str(Path(word).parent), Path(word).name)
            base = self._base(folder)
            found += [self._local(path) for path in _present(word)] if base is None else self._of(folder, base, name)
        return found

    def _local(self, path: str) -> Shard:
        folder, name = str(Path(path).parent), Path(path).name
        shard = self._shard(folder, name, path)
        size = Path(path).stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{path} has {size} bytes, but {shard.bytes} in the index: it was changed or cut after indexing; "
                f"restore it, or run: diffpipe index {folder}"
            )
        return shard

    def _remote(self, url: str) -> list[Shard]:
        """The shards that a URL names: a tar's, a folder's, or one whose last part is a glob."""
        name = parse(url).path.rpartition("/")[2]
        where, name = (folder_of(url), name) if name.endswith(".tar") or set(name) & set("*[") else (url, "*")
        return self._of(where, self._table(where).base or where, name)

    def _of(self, folder: str, base: str, pattern: str) -> list[Shard]:
        """The shards of a remote base that an index names."""
        names = [name for name in self._table(folder).shards if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        found: list[Shard] = []
        for name in names or [pattern]:
            url = beside(base, name)
            shard = self._shard(folder, name, redacted(url))
            found.append(shard._replace(remote=Remote(self.cache, Item(url, shard.bytes, shard.sha256))))
        return found

    def _shard(self, folder: str, name: str, path: str) -> Shard:
        table = self._table(folder)
        entry = table.shards.get(name)
        if entry is None:
            place = redacted(folder) if is_remote(folder) else folder
            raise UserError(f"{path} is not in the index of {place}; index it with: diffpipe index {place}")
        return Shard(
            path=path,
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            samples=entry["samples"],
            members=entry["members"],
            classes=entry["classes_count"],
            first=self._tables[folder][1][name],
            table=table,
        )

    def _base(self, folder: str) -> str | None:
        """The URL of the shards whose index a local folder holds, or None where it holds none, or its own."""
        return self._table(folder).base if (Path(folder) / INDEX_NAME).exists() else None

    def _table(self, folder: str) -> Table:
        if folder not in self._tables:
            table = self._fetched(folder) if is_remote(folder) else Table(str(Path(folder) / INDEX_NAME))
            ends = itertools.accumulate((shard["samples"] for shard in table.shards.values()), initial=0)
            self._tables[folder] = table, dict(zip(table.shards, ends, strict=False))
        return self._tables[folder][0]

    def _fetched(self, folder: str) -> Table:
        try:
            path = self.cache.index(beside(folder, INDEX_NAME))
        except MissingError as error:
            raise UserError(
                f"{error}; shards that have no index beside them are indexed from here by: diffpipe index "
                f"{redacted(folder)} --out FOLDER, and FOLDER is then what to give for them"
            ) from None
        try:
            return Table(path)
        except UserError as error:
            Path(path).unlink(missing_ok=True)
            raise UserError(
                f"{redacted(beside(folder, INDEX_NAME))}: not a readable index; make it anew there with: diffpipe "
                "index FOLDER, or run the same command again"
            ) from error


def expand(patterns: str | Sequence[str]) -> list[str]:
    """The paths of the local tars that `patterns` name, each one once and present. Raises UserError."""
    words = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for pattern in words for word in _words(pattern) for path in _present(word)]
    if not paths:
        raise UserError(_NONE)
    _check_once([os.path.realpath(path) for path in paths])
    return paths


def _words(pattern: str) -> list[str]:
    home = str(Path(pattern).expanduser())
    return [home] if Path(home).exists() else expand_urls(home)


def _present(word: str) -> list[str]:
    """The tars that are there of a path, directory or glob."""
    if Path(word).is_dir():
        found = sorted(str(path) for path in Path(word).glob("*.tar"))
    elif Path(word).exists():
        found = [word]
    else:
        found = sorted(glob.glob(word))  # noqa: PTH207 (pathlib has no absolute patterns)
    if not found:
        raise UserError(f"{word}: no such shards; give a tar, a folder of *.tar, a glob or a brace pattern")
    return found


def _check_once(places: Sequence[str]) -> None:
    twice = next((place for place, n in Counter(places).items() if n > 1), None)
    if twice is not None:
        raise UserError(f"{redacted(twice) if is_remote(twice) else twice} is named twice; name each shard once")


def number_of_classes(shard_set: ShardSet) -> int:
    """How many classes label the set: the class names in the index, else 1 + the largest label; 0 without labels."""
    return len(shard_set.classes or ()) or max(shard.classes or 0 for shard in shard_set.shards)


def _verify(shard: Shard) -> None:
    if sha256_of(Path(shard.path)) != shard.sha256:
        raise UserError(
            f"{shard.path} was changed after indexing: its sha256 is not the index's; restore it, "
            f"or run: diffpipe index {Path(shard.path).parent}"
        )
