"""The index file of one directory of shards: `index.safetensors`.

It says of each tar its length and sha256, and of each member where its bytes lie and what they hash to: plain arrays
that are mapped into memory, and JSON in the metadata of the file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffpipe.data.index.mmapped_safetensors import Column, map_arrays, write_arrays
from diffpipe.data.index.parallel_scan import Part, parts_folder, scan_all
from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.data.remote.urls import parse, redacted
from diffpipe.errors import UserError

INDEX_NAME = "index.safetensors"
_VERSION = 1
_REMOTE_VERSION = 2  # with `base`: a reader of version 1 would look for the shards beside the index


class Member(NamedTuple):
    """Where the bytes of one member lie in its shard, and their crc32."""

    offset: int
    size: int
    crc32: int


class Places(NamedTuple):
    """Where one member of each of several samples lies, as of a `Member`, each int64 [b]; size -1 where it has none."""

    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray


class Sample(NamedTuple):
    """One sample: its key and its members by extension."""

    key: str
    members: dict[str, Member]


class Table:
    """The index file of one directory, mapped into memory. It pickles as its path.

    base: the URL of the folder of the shards, which holds no secret, or None where they lie beside the index. shards:
    by name, in order, `{"name", "bytes", "sha256", "samples", "members", "classes_count"}`.
    """

    def __init__(self, path: str):
        self.path = path
        directory = Path(path).parent
        if not Path(path).exists():
            raise UserError(f"{path} is missing; make it with: diffpipe index {directory}")
        again = f"make it anew with: diffpipe index {directory}"
        try:
            arrays, metadata = map_arrays(Path(path))
            head = json.loads(metadata["diffpipe"])
            if head["version"] not in (_VERSION, _REMOTE_VERSION):
                raise UserError(f"{path}: index version {head['version']}, which this diffpipe does not read; {again}")
            self.shards: dict[str, dict[str, Any]] = {shard["name"]: shard for shard in head["shards"]}
            self.extensions: list[str] = head["extensions"]
            self.classes: list[str] | None = head["classes"]
            self.base: str | None = head["base"] if head["version"] == _REMOTE_VERSION else None
            self._key_bytes, self._key_end = arrays["key.bytes"], arrays["key.end"]
            self._first = arrays["sample.first_member"]
            self._extension = arrays["member.extension"]
            self._place = arrays["member.offset"], arrays["member.size"], arrays["member.crc32"]
            samples, members = sum(shard["samples"] for shard in head["shards"]), len(self._extension)
            if not (
                len(self._key_end) == len(self._first) - 1 == samples
                and {len(array) for array in self._place} == {members}
                and (self._first[-1], self._key_end[-1]) == (members, len(self._key_bytes))
            ):
                raise ValueError("the lengths of its arrays do not fit together")
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            raise UserError(f"{path}: not a readable index ({error}); {again}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.path,)

    def sample(self, i: int) -> Sample:
        """Sample i of the directory."""
        start = self._key_end[i - 1] if i else 0
        key = self._key_bytes[start : self._key_end[i]].tobytes().decode("utf-8", "surrogateescape")
        members = range(self._first[i], self._first[i + 1])
        places = {self.extensions[self._extension[m]]: Member(*(int(a[m]) for a in self._place)) for m in members}
        return Sample(key, places)

    def keys(self, samples: np.ndarray) -> list[str]:
        """The keys of samples int64 [b] of the directory."""
        ends = self._key_end[samples]
        starts = np.where(samples > 0, self._key_end[samples - 1], 0)
        keys = self._key_bytes.data
        places = zip(starts.tolist(), ends.tolist(), strict=True)
        return [str(keys[start:end], "utf-8", "surrogateescape") for start, end in places]

    def places(self, samples: np.ndarray, extensions: Sequence[str]) -> Places:
        """Where the member with the first of the extensions that a sample has lies, for samples int64 [b]."""
        ranks = np.array([_rank(extension, extensions) for extension in self.extensions])
        first, end = self._first[samples], self._first[samples + 1]
        found, best = np.zeros_like(samples), np.full(len(samples), len(extensions))
        for m in range(int((end - first).max(initial=0))):
            member = np.minimum(first + m, end - 1)  # of a sample with fewer, the last one again
            rank = np.where(first + m < end, ranks[self._extension[member]], len(extensions))
            found, best = np.where(rank < best, member, found), np.minimum(rank, best)
        offset, size, crc32 = (array[found].astype(np.int64) for array in self._place)
        return Places(offset, np.where(best < len(extensions), size, -1), crc32)

    def having(self, extensions: Sequence[str], start: int, end: int) -> np.ndarray:
        """Which of the samples from `start` to `end` have a member with one of the extensions, bool [end - start]."""
        first = self._first[start : end + 1]
        numbers = [number for number, extension in enumerate(self.extensions) if extension in extensions]
        there = np.isin(self._extension[first[0] : first[-1]], np.array(numbers, dtype=np.uint8))
        return np.diff(np.concatenate([[0], np.cumsum(there)])[first - first[0]]) > 0


def _rank(extension: str, extensions: Sequence[str]) -> int:
    return extensions.index(extension) if extension in extensions else len(extensions)


def write_index(
    directory: str | Path,
    classes: Sequence[str] | None = None,
    extra: Iterable[str] = (),
    *,
    workers: int = 0,
    max_member: int = MAX_MEMBER,
) -> None:
    """Scan every `*.tar` of `directory`, and those named in `extra` too, and write its index, whole or not at all.

    Class names that stand in an index there already are kept where `classes` is None. workers, max_member: see
    `parallel_scan.scan_all`. What an interrupted call has scanned is not scanned again. Raises UserError.
    """
    directory = Path(directory)
    names = sorted({path.name for path in directory.glob("*.tar")} | set(extra))
    if not names:
        raise UserError(f"{directory}: no *.tar in it; give the folder that holds the shards")
    _write(directory, {name: str(directory / name) for name in names}, None, classes, workers, max_member)


def write_remote_index(
    urls: Sequence[str],
    out: str | Path,
    classes: Sequence[str] | None = None,
    *,
    workers: int = 0,
    max_member: int = MAX_MEMBER,
) -> None:
    """Scan remote tars of one folder, each read through once and kept nowhere, and write their index into `out`.

    The rest is as with `write_index`.
    """
    out = Path(out)
    addresses = [parse(url) for url in urls]
    bases = sorted({str(each._replace(path=each.path.rpartition("/")[0])) for each in addresses})
    if len(bases) > 1:
        here, there = map(redacted, bases[:2])
        raise UserError(f"{here} and {there}: an index is of the shards of one folder; give each a --out of its own")
    if next(out.glob("*.tar"), None) is not None:
        raise UserError(f"{out}: holds tars itself, whose index would be lost; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another --out") from error
    paths = {address.path.rpartition("/")[2]: url for address, url in zip(addresses, urls, strict=True)}
    _write(out, dict(sorted(paths.items())), bases[0], classes, workers, max_member)


def _write(
    directory: Path,
    paths: Mapping[str, str],
    base: str | None,
    classes: Sequence[str] | None,
    workers: int,
    max_member: int,
) -> None:
    target = directory / INDEX_NAME
    if classes is None:
        with contextlib.suppress(UserError):  # no index yet, or one that has to be made anew
            classes = Table(str(target)).classes
    try:
        with parts_folder(directory) as folder:
            parts = scan_all(list(paths.items()), folder, workers, max_member)
            largest = max(part.head["classes"] or 0 for part in parts)
            if classes is not None and largest > len(classes):
                raise UserError(f"{directory}: a label is {largest - 1}, but there are only {len(classes)} class names")
            extensions = sorted({extension for part in parts for extension in part.head["members"]})
            if len(extensions) > 256:
                raise UserError(f"{next(iter(paths))} and others: more than 256 extensions; name them KEY.EXTENSION")
            head = {
                "version": _VERSION if base is None else _REMOTE_VERSION,
                "shards": [_entry(name, part) for name, part in zip(paths, parts, strict=True)],
                "extensions": extensions,
                "classes": None if classes is None else list(classes),
                **({} if base is None else {"base": base}),
            }
            write_arrays(target, _columns(parts, extensions), {"diffpipe": json.dumps(head)})
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); free some space or change the rights"
        ) from error


def _entry(name: str, part: Part) -> dict[str, Any]:
    head = part.head
    return {
        "name": name,
        "bytes": head["bytes"],
        "sha256": head["sha256"],
        "samples": head["samples"],
        "members": dict(sorted(head["members"].items())),
        "classes_count": head["classes"],
    }


def _columns(parts: Sequence[Part], extensions: Sequence[str]) -> dict[str, Column]:
    """The columns of the index, a part at a time, so that one part at most is in memory."""
    samples = sum(part.head["samples"] for part in parts)
    members = [sum(part.head["members"].values()) for part in parts]
    keys = [int(part.column("key.end")[-1]) for part in parts]
    number = {extension: i for i, extension in enumerate(extensions)}

    def shifted(name: str, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            yield part.column(name) + start
            start += length

    def first_member() -> Iterator[np.ndarray]:
        yield from shifted("sample.first_member", members)
        yield np.array([sum(members)], dtype=np.int64)

    def extension() -> Iterator[np.ndarray]:
        for part in parts:
            yield np.array([number[e] for e in part.head["members"]], dtype=np.uint8)[part.column("member.extension")]

    def plain(name: str) -> Iterator[np.ndarray]:
        return (part.column(name) for part in parts)

    integers, words, octets = np.dtype(np.int64), np.dtype(np.uint32), np.dtype(np.uint8)
    return {
        "key.bytes": Column(octets, sum(keys), plain("key.bytes")),
        "key.end": Column(integers, samples, shifted("key.end", keys)),
        "sample.first_member": Column(integers, samples + 1, first_member()),
        "member.extension": Column(octets, sum(members), extension()),
        "member.offset": Column(integers, sum(members), plain("member.offset")),
        "member.size": Column(integers, sum(members), plain("member.size")),
        "member.crc32": Column(words, sum(members), plain("member.crc32")),
    }
