"""The index of one directory of shards, `index.safetensors`, mapped into memory.

It holds the length and sha256 of each tar, and the offset, size and crc32 of each member: plain arrays, and JSON in the
metadata of the file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffpipe.data.index.check_index import check_arrays, check_header
from diffpipe.data.index.mmapped_safetensors import CHECKSUM, map_arrays, verify_checksum
from diffpipe.errors import UserError, shell_command
from diffpipe.files import parse_json

INDEX_NAME = "index.safetensors"
VERSION = 1
REMOTE_VERSION = 2
"""The version of an index with `base`: a reader of version 1 would look for the shards beside the index."""

_PIECE = 1 << 20  # elements


class Member(NamedTuple):
    """Where the bytes of one member are in its shard, and their crc32."""

    offset: int
    size: int
    crc32: int


class MemberLocations(NamedTuple):
    """Where one member of each of several samples is, as in `Member`, each int64 [b]; size -1 where there is none."""

    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray


class Sample(NamedTuple):
    """One sample: its key and its members by extension."""

    key: str
    members: dict[str, Member]


class ShardIndex:
    """The index file of one directory. It pickles as its path. Raises UserError where the file is missing or damaged.

    verify: check the file's checksum (a file of an earlier version has none), and all that is in it.
    base: the URL of the folder of the shards, without secrets, or None where they are beside the index. shards: by
    name, in order, `{"name", "bytes", "sha256", "samples", "members", "classes_count"}`.
    """

    def __init__(self, path: str, *, verify: bool = True):
        self.path = path
        directory = Path(path).parent
        if not Path(path).exists():
            raise UserError(f"{path} is missing; make it with: {shell_command('diffpipe', 'index', directory)}")
        remedy = f"write it again with: {shell_command('diffpipe', 'index', directory)}"
        try:
            arrays, metadata = map_arrays(Path(path))
            header = parse_json(metadata.get("diffpipe", "null"))
            version = header.get("version") if isinstance(header, dict) else None
            if type(version) is int and version > REMOTE_VERSION:
                raise UserError(f"{path}: index version {version}, which this diffpipe does not read; {remedy}")
            if type(version) is not int or version not in (VERSION, REMOTE_VERSION):
                raise ValueError("its version is not known")
            if verify:
                verify_checksum(Path(path), arrays)
                check_header(header)
                check_arrays({name: array for name, array in arrays.items() if name != CHECKSUM}, header)
        except (OSError, ValueError, MemoryError) as error:
            if isinstance(error, UserError):
                raise
            what = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
            raise UserError(f"{path}: not a readable index ({what}); {remedy}") from error
        self.shards: dict[str, dict[str, Any]] = {shard["name"]: shard for shard in header["shards"]}
        self.extensions: list[str] = header["extensions"]
        self.classes: list[str] | None = header.get("classes")
        self.base: str | None = header.get("base") if version == REMOTE_VERSION else None
        self._key_bytes, self._key_end = arrays["key.bytes"], arrays["key.end"]
        self._first_member = arrays["sample.first_member"]
        self._extension = arrays["member.extension"]
        self._location = arrays["member.offset"], arrays["member.size"], arrays["member.crc32"]

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ShardIndex, verify=False), (self.path,)  # this process has verified it

    def sample(self, i: int) -> Sample:
        """Sample i of the directory, in constant time."""
        start = self._key_end[i - 1] if i else 0
        key = self._key_bytes[start : self._key_end[i]].tobytes().decode("utf-8", "surrogateescape")
        members = range(self._first_member[i], self._first_member[i + 1])
        return Sample(
            key,
            {
                self.extensions[self._extension[m]]: Member(*(int(column[m]) for column in self._location))
                for m in members
            },
        )

    def keys(self, samples: np.ndarray) -> list[str]:
        """The keys of samples int64 [b] of the directory."""
        ends = self._key_end[samples]
        starts = np.where(samples > 0, self._key_end[samples - 1], 0)
        keys = self._key_bytes.data
        bounds = zip(starts.tolist(), ends.tolist(), strict=True)
        return [str(keys[start:end], "utf-8", "surrogateescape") for start, end in bounds]

    def locations(self, samples: np.ndarray, extensions: Sequence[str]) -> MemberLocations:
        """Where the member of each sample int64 [b] is that has the first of the extensions."""
        ranks = np.array([_rank(extension, extensions) for extension in self.extensions])
        first, end = self._first_member[samples], self._first_member[samples + 1]
        best, best_rank = np.zeros_like(samples), np.full(len(samples), len(extensions))
        for m in range(int((end - first).max(initial=0))):
            member = np.minimum(first + m, end - 1)  # a sample with fewer members repeats its last one
            rank = np.where(first + m < end, ranks[self._extension[member]], len(extensions))
            best, best_rank = np.where(rank < best_rank, member, best), np.minimum(rank, best_rank)
        offset, size, crc32 = (column[best].astype(np.int64) for column in self._location)
        return MemberLocations(offset, np.where(best_rank < len(extensions), size, -1), crc32)

    def having(self, extensions: Sequence[str], start: int, end: int) -> np.ndarray:
        """Which of the samples from `start` to `end` have a member with one of the extensions, bool [end - start]."""
        first = self._first_member[start : end + 1]
        numbers = [number for number, extension in enumerate(self.extensions) if extension in extensions]
        matches = np.isin(self._extension[first[0] : first[-1]], np.array(numbers, dtype=np.uint8))
        return np.diff(np.concatenate([[0], np.cumsum(matches)])[first - first[0]]) > 0

    def members_sha256(self, start: int, end: int) -> str:
        """A hash of the samples from `start` to `end`: of their keys and the extension, place and crc32 of each member.

        It is equal for equal samples, whatever else the index holds.
        """
        first, keys_end = self._first_member[start : end + 1], self._key_end[start:end]
        members = slice(int(first[0]), int(first[-1]))
        keys_start = int(self._key_end[start - 1]) if start else 0
        numbers = np.unique(self._extension[members])
        numbering = np.zeros(256, dtype=np.uint8)
        numbering[numbers] = np.arange(len(numbers), dtype=np.uint8)
        digest = hashlib.sha256(json.dumps([self.extensions[number] for number in numbers.tolist()]).encode())
        columns = [self._key_bytes[keys_start : int(keys_end[-1])] if end > start else self._key_bytes[:0]]
        for pieces in (
            _pieces(columns[0]),
            (piece - keys_start for piece in _pieces(keys_end)),
            (piece - first[0] for piece in _pieces(first)),
            (numbering[piece] for piece in _pieces(self._extension[members])),
            *(_pieces(column[members]) for column in self._location),
        ):
            for piece in pieces:
                digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces of a few megabytes, so that little of a mapped index is in memory at a time."""
    return (array[start : start + _PIECE] for start in range(0, len(array), _PIECE))


def _rank(extension: str, extensions: Sequence[str]) -> int:
    return extensions.index(extension) if extension in extensions else len(extensions)
