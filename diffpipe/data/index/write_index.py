"""The index of a directory of shards, made by scanning them: local tars, or remote ones that are read through once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffpipe.data import own_places
from diffpipe.data.index.index_changes import IndexChanges, index_changes
from diffpipe.data.index.link_shards import link_shards
from diffpipe.data.index.mmapped_safetensors import StreamedArray, write_arrays
from diffpipe.data.index.parallel_scan import ShardScan, scan_all, scans_folder
from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.data.index.shard_index import INDEX_NAME, REMOTE_VERSION, VERSION, ShardIndex
from diffpipe.data.remote.urls import parent, parse, redacted
from diffpipe.errors import UserError
from diffpipe.files import sha256_of
from diffpipe.plural import plural


def write_index(
    directory: str | Path,
    classes: Sequence[str] | None = None,
    extra: Iterable[str] = (),
    *,
    out: Path | None = None,
    workers: int = 0,
    max_member: int = MAX_MEMBER,
) -> IndexChanges | None:
    """Scan every `*.tar` of `directory`, and those named in `extra`, and write the index: wholly or not at all.

    out: the folder for the index, with a symbolic link to each shard, where `directory` cannot be written; shards are
    read there then. Where `classes` is None, the class names of an existing index are kept. workers, max_member: see
    `scan_all`. Shards that an interrupted call has scanned are not scanned again. Returns what differs from an index
    that was there. Raises UserError.
    """
    directory = Path(directory)
    names = sorted({path.name for path in directory.glob("*.tar")} | set(extra))
    if not names:
        raise UserError(f"{directory}: no *.tar in it; give the folder that holds the shards")
    target = directory
    if out is not None and out.resolve() != directory.resolve():
        link_shards(directory, names, out)
        target = out
    return _scan_and_write(target, {name: str(directory / name) for name in names}, None, classes, workers, max_member)


def write_remote_index(
    urls: Sequence[str],
    out: str | Path,
    classes: Sequence[str] | None = None,
    *,
    workers: int = 0,
    max_member: int = MAX_MEMBER,
) -> IndexChanges | None:
    """Scan remote tars of one folder and write their index into the local folder `out`.

    Each tar is read through once and not kept. Otherwise as `write_index`.
    """
    out = Path(out)
    folders = sorted({parent(url) for url in urls})
    if len(folders) > 1:
        first, second = map(redacted, folders[:2])
        raise UserError(f"{first} and {second}: an index covers the shards of one folder; give each a --out of its own")
    if next(out.glob("*.tar"), None) is not None:
        raise UserError(f"{out}: holds tars itself, whose index would be lost; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror}); give another --out") from error
    by_name = {parse(url).path.rpartition("/")[2]: url for url in urls}
    return _scan_and_write(out, dict(sorted(by_name.items())), folders[0], classes, workers, max_member)


def _scan_and_write(
    directory: Path,
    paths: Mapping[str, str],
    base: str | None,
    classes: Sequence[str] | None,
    workers: int,
    max_member: int,
) -> IndexChanges | None:
    """Write the index of the shards `paths` (by name: a path or URL) into `directory`."""
    target = directory / INDEX_NAME
    replaced = None
    with contextlib.suppress(UserError):  # there is no index yet, or one that cannot be read
        replaced = ShardIndex(str(target))
    if classes is None and replaced is not None:
        classes = replaced.classes
    try:
        with scans_folder(directory) as folder:
            scans = scan_all(list(paths.items()), folder, workers, max_member)
            largest = max(scan.header["classes"] or 0 for scan in scans)
            if classes is not None and largest > len(classes):
                raise UserError(
                    f"{directory}: a label is {largest - 1}, but there are only {plural(len(classes), 'class name')}"
                )
            extensions = sorted({extension for scan in scans for extension in scan.header["members"]})
            if len(extensions) > 256:
                raise UserError(f"{next(iter(paths))} and others: more than 256 extensions; name them KEY.EXTENSION")
            header = {
                "version": VERSION if base is None else REMOTE_VERSION,
                "shards": [_shard_header(name, scan) for name, scan in zip(paths, scans, strict=True)],
                "extensions": extensions,
                "classes": None if classes is None else list(classes),
                **({} if base is None else {"base": redacted(base)}),
            }
            write_arrays(target, _index_arrays(scans, extensions), {"diffpipe": json.dumps(header)}, checksum=True)
            if base is not None:
                own_places.note(target, sha256_of(target), base)
            shards = {shard["name"]: shard for shard in header["shards"]}
            return None if replaced is None else index_changes(replaced.shards, shards)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); free some space, change the rights, or name a folder for "
            "the index with --out"
        ) from error


def _shard_header(name: str, scan: ShardScan) -> dict[str, Any]:
    header = scan.header
    return {
        "name": name,
        "bytes": header["bytes"],
        "sha256": header["sha256"],
        "samples": header["samples"],
        "members": dict(sorted(header["members"].items())),
        "classes_count": header["classes"],
    }


def _index_arrays(scans: Sequence[ShardScan], extensions: Sequence[str]) -> dict[str, StreamedArray]:
    """The arrays of the index, one scan at a time, so that at most one is in memory."""
    samples = sum(scan.header["samples"] for scan in scans)
    members = [sum(scan.header["members"].values()) for scan in scans]
    key_bytes = [int(scan.array("key.end")[-1]) for scan in scans]
    number = {extension: i for i, extension in enumerate(extensions)}

    def shifted(name: str, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Numbers that count from the beginning of each scan, made to count from the beginning of the first."""
        start = 0
        for scan, length in zip(scans, lengths, strict=True):
            yield scan.array(name) + start
            start += length

    def first_member() -> Iterator[np.ndarray]:
        yield from shifted("sample.first_member", members)
        yield np.array([sum(members)], dtype=np.int64)

    def extension() -> Iterator[np.ndarray]:
        for scan in scans:
            numbers = np.array([number[e] for e in scan.header["members"]], dtype=np.uint8)
            yield numbers[scan.array("member.extension")]

    def unchanged(name: str) -> Iterator[np.ndarray]:
        return (scan.array(name) for scan in scans)

    int64, uint32, uint8 = np.dtype(np.int64), np.dtype(np.uint32), np.dtype(np.uint8)
    return {
        "key.bytes": StreamedArray(uint8, sum(key_bytes), unchanged("key.bytes")),
        "key.end": StreamedArray(int64, samples, shifted("key.end", key_bytes)),
        "sample.first_member": StreamedArray(int64, samples + 1, first_member()),
        "member.extension": StreamedArray(uint8, sum(members), extension()),
        "member.offset": StreamedArray(int64, sum(members), unchanged("member.offset")),
        "member.size": StreamedArray(int64, sum(members), unchanged("member.size")),
        "member.crc32": StreamedArray(uint32, sum(members), unchanged("member.crc32")),
    }
