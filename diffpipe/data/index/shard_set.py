"""The shards of a data set: found by path, glob, brace pattern or URL, checked against their indices."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from braceexpand import braceexpand

from diffpipe.data import own_places
from diffpipe.data.index.patterns import NO_SHARDS, expand_braces, local_tars, require_distinct
from diffpipe.data.index.scan import dotted_names
from diffpipe.data.index.shard_index import INDEX_NAME, MemberLocations, Sample, ShardIndex
from diffpipe.data.remote import allowed_bases
from diffpipe.data.remote.cache import RemoteShard, ShardCache
from diffpipe.data.remote.download import CachedFile
from diffpipe.data.remote.storage import MissingError
from diffpipe.data.remote.urls import is_remote, join, parent, parse, redacted
from diffpipe.errors import UserError, all_of, shell_command
from diffpipe.files import sha256_of

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
VERIFY_LIMIT = 1 << 30
_MOST_CLASSES = 1_000_000


class Shard(NamedTuple):
    """One tar of a set.

    path: of a remote shard its URL, without secrets. members: how many samples have each extension. classes: 1 + the
    largest label, or None where some sample has no `.cls` that is an integer ≥ 0. first: the number of its first sample
    in `index`. remote: how to read a remote shard; None for a local one.
    """

    path: str
    bytes: int
    sha256: str
    samples: int
    members: dict[str, int]
    classes: int | None
    first: int
    index: ShardIndex
    remote: RemoteShard | None = None


class ShardSet:
    """An ordered set of indexed shards. Runs and scores identify it by its fingerprint."""

    def __init__(self, shards: Sequence[Shard]):
        self.shards = tuple(shards)
        self.paths = [shard.path for shard in self.shards]
        self.counts = np.array([shard.samples for shard in self.shards], dtype=np.int64)
        self.total = int(self.counts.sum())
        indices = {id(shard.index): shard.index for shard in self.shards}
        number = {key: i for i, key in enumerate(indices)}
        self._indices = list(indices.values())
        self._index_of_shard = np.array([number[id(shard.index)] for shard in self.shards])
        self._first = np.array([shard.first for shard in self.shards], dtype=np.int64)
        names = {tuple(s.index.classes) for s in self.shards if s.index.classes is not None}
        if len(names) > 1:
            raise UserError(f"{self.paths[0]} and others: their indices name different classes; use shards that agree")
        self.classes: list[str] | None = list(names.pop()) if names else None

    @property
    def listing(self) -> str:
        """The ordered names, lengths and hashes of the shards, and a hash of the members of each, as JSON."""
        return json.dumps(self.rows(members=True))

    def rows(self, *, members: bool) -> Any:
        """The rows of the listing, or those of earlier versions, which had no hash of the members."""
        rows = [[Path(s.path).name, s.bytes, s.sha256] for s in self.shards]
        if members:
            rows = [[*row, digest] for row, digest in zip(rows, self._members, strict=True)]
        return rows

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the listing: equal for equal samples in equal shards in the same order."""
        return hashlib.sha256(self.listing.encode()).hexdigest()

    @functools.cached_property
    def tars_fingerprint(self) -> str:
        """The fingerprint of earlier versions, of the tars alone. It does not show a changed index."""
        return hashlib.sha256(json.dumps(self.rows(members=False)).encode()).hexdigest()

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether the fingerprint, of this version or of an earlier one, is of these shards."""
        return fingerprint in (self.fingerprint, self.tars_fingerprint)

    @functools.cached_property
    def _members(self) -> list[str]:
        """A hash of the members of each shard."""
        return [s.index.members_sha256(s.first, s.first + s.samples) for s in self.shards]

    def lacking(self, *extensions: str) -> str | None:
        """The first shard in which some sample has a member with none of the `extensions`, or None."""
        return next((s.path for s in self.shards if sum(s.members.get(e, 0) for e in extensions) < s.samples), None)

    def lacks_images(self) -> str | None:
        """A phrase on a shard in which some sample has no image, with the reason where names have dots, or None."""
        path = self.lacking(*IMAGE_EXTENSIONS)
        if path is None:
            return None
        members = [extension for shard in self.shards if shard.path == path for extension in shard.members]
        dotted = dotted_names(members, IMAGE_EXTENSIONS)
        return f"{path}: some samples have no image" + ("" if dotted is None else f" ({dotted})")

    def has(self, extension: str) -> bool:
        """Whether every sample has a member with this extension."""
        return self.lacking(extension) is None

    def sample(self, shard: int, i: int) -> Sample:
        """Sample i of a shard, in constant time."""
        return self.shards[shard].index.sample(self.shards[shard].first + i)

    def locations(self, shards: np.ndarray, numbers: np.ndarray, extensions: Sequence[str]) -> MemberLocations:
        """Where the member of each sample is that has the first of the extensions.

        shards, numbers: the shard of each sample and its number there, int64 [b] both.
        """
        locations = MemberLocations(*np.empty((3, len(shards)), dtype=np.int64))
        for index, rows, samples in self._by_index(shards, numbers):
            for column, values in zip(locations, index.locations(samples, extensions), strict=True):
                column[rows] = values
        return locations

    def keys(self, shards: np.ndarray, numbers: np.ndarray) -> list[str]:
        """The keys of samples, by shard and number there, int64 [b] both."""
        keys = [""] * len(shards)
        for index, rows, samples in self._by_index(shards, numbers):
            for i, key in zip(rows.tolist(), index.keys(samples), strict=True):
                keys[i] = key
        return keys

    def _by_index(self, shards: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[ShardIndex, np.ndarray, np.ndarray]]:
        """The samples grouped by index: the index, the rows of its samples, and their numbers in it."""
        index_of_sample, samples = self._index_of_shard[shards], self._first[shards] + numbers
        for i in np.unique(index_of_sample).tolist():
            rows = np.flatnonzero(index_of_sample == i)
            yield self._indices[i], rows, samples[rows]


def load(
    patterns: str | Sequence[str], verify_limit: int = VERIFY_LIMIT, *, cache: ShardCache | None = None
) -> ShardSet:
    """The indexed shards that `patterns` name, in order: tars, directories, globs, brace patterns, or a list of them.

    They may be URLs: their index is beside the tars, or in a local directory that is named instead of them. Remote
    shards are read through `cache`, by default the one of this machine.

    The lengths of all local tars are checked against the index, and their sha256 if together they have at most
    `verify_limit` bytes. (The crc32 of a member is checked at every read, and the sha256 of a remote tar when it is
    fetched.) Raises UserError that names the file and the remedy.
    """
    indices = _Indices(cache or ShardCache())
    patterns = [patterns] if isinstance(patterns, str) else patterns
    shards = [*chain.from_iterable(all_of(*(partial(indices.shards, pattern) for pattern in patterns)))]
    if not shards:
        raise UserError(NO_SHARDS)
    require_distinct([os.path.realpath(s.path) if s.remote is None else s.remote.file.url for s in shards])
    local = [shard for shard in shards if shard.remote is None]
    verify = sum(shard.bytes for shard in local) <= verify_limit
    all_of(*(partial(_check, shard, verify=verify) for shard in local))
    return ShardSet(shards)


class _Indices:
    """The indices of local and remote folders, each read once."""

    def __init__(self, cache: ShardCache):
        self.cache = cache
        self._indices: dict[str, tuple[ShardIndex, dict[str, int]]] = {}  # with the first sample of each shard

    def shards(self, pattern: str) -> list[Shard]:
        """The shards that one pattern names."""
        remote = is_remote(pattern)
        words, find = (braceexpand(pattern), self._remote) if remote else (expand_braces(pattern), self._local)
        return [*chain.from_iterable(all_of(*(partial(find, word) for word in words)))]

    def _local(self, word: str) -> list[Shard]:
        """The shards that a path, a directory or a glob names."""
        folder, name = (word, "*") if Path(word).is_dir() else (str(Path(word).parent), Path(word).name)
        if self._are_remote(folder):
            return self._matching(folder, name)
        tars = local_tars(word)
        return all_of(*(partial(self._shard, str(Path(path).parent), Path(path).name, path) for path in tars))

    def _remote(self, url: str) -> list[Shard]:
        """The shards that a URL names: a tar, a folder, or one whose last part is a glob."""
        name = parse(url).path.rpartition("/")[2]
        folder, name = (parent(url), name) if name.endswith(".tar") or set(name) & set("*[") else (url, "*")
        return self._matching(folder, name)

    def _matching(self, folder: str, pattern: str) -> list[Shard]:
        """The remote shards in the index of `folder` whose names match."""
        base = self._base(folder)
        names = [name for name in self._index(folder).shards if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        shards: list[Shard] = []
        for name in names or [pattern]:
            url = join(base, name)
            shard = self._shard(folder, name, redacted(url))
            shards.append(shard._replace(remote=RemoteShard(self.cache, CachedFile(url, shard.bytes, shard.sha256))))
        return shards

    def _shard(self, folder: str, name: str, path: str) -> Shard:
        index = self._index(folder)
        header = index.shards.get(name)
        if header is None:
            shown = redacted(folder) if is_remote(folder) else folder
            command = shell_command("diffpipe", "index", shown)
            raise UserError(f"{path} is not in the index of {shown}; index it with: {command}")
        return Shard(
            path=path,
            bytes=header["bytes"],
            sha256=header["sha256"],
            samples=header["samples"],
            members=header["members"],
            classes=header["classes_count"],
            first=self._indices[folder][1][name],
            index=index,
        )

    def _are_remote(self, folder: str) -> bool:
        """Whether the index in a local folder describes remote shards."""
        return (Path(folder) / INDEX_NAME).exists() and self._index(folder).base is not None

    def _base(self, folder: str) -> str:
        """The URL of the remote shards in the index of `folder`, as this user named it. Raises UserError."""
        index = self._index(folder)
        if is_remote(folder):
            return allowed_bases.url_of(index.base or folder, [folder], redacted(join(folder, INDEX_NAME)))
        own = own_places.noted(Path(index.path), sha256_of(Path(index.path)))
        return allowed_bases.url_of(index.base or "", [own] if own else [], index.path)

    def _index(self, folder: str) -> ShardIndex:
        if folder not in self._indices:
            index = self._fetch(folder) if is_remote(folder) else ShardIndex(str(Path(folder) / INDEX_NAME))
            first = itertools.accumulate((shard["samples"] for shard in index.shards.values()), initial=0)
            self._indices[folder] = index, dict(zip(index.shards, first, strict=False))
        return self._indices[folder][0]

    def _fetch(self, folder: str) -> ShardIndex:
        try:
            path = self.cache.index(join(folder, INDEX_NAME))
        except MissingError as error:
            command = shell_command("diffpipe", "index", redacted(folder))
            remedy = f"index shards without an index with: {command} --out FOLDER, and give FOLDER instead of their URL"
            raise UserError(f"{error}; {remedy}") from None
        try:
            return ShardIndex(path)
        except UserError as error:
            Path(path).unlink(missing_ok=True)
            raise UserError(
                f"{redacted(join(folder, INDEX_NAME))}: not a readable index; write it again there with: diffpipe "
                "index FOLDER, or run the same command again"
            ) from error


def number_of_classes(shard_set: ShardSet) -> int:
    """The number of classes: of the names in the index, or else 1 + the largest label; 0 without labels.

    Raises UserError where labels are no classes, such as dates: networks have weights for each class.
    """
    shard = max(shard_set.shards, key=lambda shard: shard.classes or 0)
    largest = shard.classes or 0
    if largest > max(_MOST_CLASSES, shard_set.total):
        raise UserError(
            f"{shard.path}: a label is {largest - 1}, more than there are samples ({shard_set.total}); number "
            "the classes from 0, or set data.labels=false"
        )
    return len(shard_set.classes or ()) or largest


def _check(shard: Shard, *, verify: bool) -> None:
    """Raise UserError where a local tar is not the one that was indexed. verify: compare its sha256, too."""
    size, folder = Path(shard.path).stat().st_size, Path(shard.path).parent
    if size != shard.bytes:
        raise UserError(
            f"{shard.path} has {size} bytes, but {shard.bytes} in the index: it was changed or cut after "
            f"indexing; restore it, or run: {shell_command('diffpipe', 'index', folder)}"
        )
    if verify and sha256_of(Path(shard.path)) != shard.sha256:
        raise UserError(
            f"{shard.path} was changed after indexing: its sha256 is not the index's; restore it, "
            f"or, if the change was meant, run: {shell_command('diffpipe', 'index', folder)}"
        )
