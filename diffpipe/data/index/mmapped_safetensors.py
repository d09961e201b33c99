"""Arrays in a safetensors file: written piece by piece, wholly or not at all, and mapped into memory.

The safetensors library writes all arrays at once, and its reader may copy them, so that each worker would hold its own
copy of an index. Here the pages belong to the file, and all processes of a node share them.

A file can have a checksum: its last array, `sha256`, is the sha256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffpipe.files import atomic_file, open_regular, parse_json

_DTYPES = {"I64": np.dtype("<i8"), "U32": np.dtype("<u4"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 1 << 28
_METADATA = "__metadata__"
CHECKSUM = "sha256"
_DIGEST = hashlib.sha256().digest_size
_CHUNK = 1 << 20


class StreamedArray(NamedTuple):
    """A one-dimensional array of `length` elements, given in pieces."""

    dtype: np.dtype
    length: int
    pieces: Iterable[np.ndarray]


def write_arrays(
    path: Path, arrays: Mapping[str, StreamedArray], metadata: Mapping[str, str], *, checksum: bool = False
) -> None:
    """Write arrays, a piece at a time. The file appears whole or not at all. Raises OSError.

    checksum: write one, as the last array.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that each array is aligned
    last = {CHECKSUM: StreamedArray(np.dtype(np.uint8), _DIGEST, [])} if checksum else {}
    header: dict[str, object] = {_METADATA: dict(metadata)}
    end = 0
    for name, (dtype, length, _) in [*((name, arrays[name]) for name in names), *last.items()]:
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": [length],
            "data_offsets": [end, end := end + dtype.itemsize * length],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_file(path) as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dtype, length, pieces = arrays[name]
            for piece in pieces:
                write(np.ascontiguousarray(piece, dtype=dtype).data)
                length -= len(piece)
            assert length == 0
        if checksum:
            file.write(digest.digest())


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, read-only and not copied, and its metadata.

    Raises OSError, and ValueError where the file has another format.
    """
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = int.from_bytes(file.read(8), "little") + 8
        if not 8 < start <= min(size, _MAX_HEADER):
            raise ValueError("not a safetensors file")
        header = parse_json(file.read(start - 8))
        metadata, arrays = _metadata(header), _layout(header, size - start)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {
        name: np.ndarray((length,), dtype, data, start + begin) for name, (dtype, length, begin) in arrays.items()
    }, metadata


def verify_checksum(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where the arrays have a checksum that is not that of their file; also OSError."""
    if CHECKSUM not in arrays:
        return
    digest = hashlib.sha256()
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        left = os.fstat(file.fileno()).st_size - _DIGEST
        while left > 0 and (block := file.read(min(left, _CHUNK))):
            digest.update(block)
            left -= len(block)
        if not digest.digest() == file.read() == arrays[CHECKSUM].tobytes():
            raise ValueError("its checksum is not that of its bytes")


def _metadata(header: Any) -> dict[str, str]:
    metadata = header.pop(_METADATA, None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("it has no metadata")
    return metadata


def _layout(header: dict[str, Any], size: int) -> dict[str, tuple[np.dtype, int, int]]:
    """The dtype, length and first byte of each array. One must follow the other, without gaps, to the last byte."""
    arrays: dict[str, tuple[np.dtype, int, int]] = {}
    ends = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": [int(length)], "data_offsets": [int(begin), int(end)]} if (
                dtype in _DTYPES and 0 <= begin <= end <= size and end - begin == _DTYPES[dtype].itemsize * length
            ):
                arrays[name] = _DTYPES[dtype], length, begin
                ends.append((begin, end))
            case _:
                raise ValueError(f"the array {name[:40]!r} is not a list of numbers within the file")
    ends.sort()
    if [begin for begin, _ in ends] + [size] != [0] + [end for _, end in ends]:
        raise ValueError("its arrays overlap, or leave bytes between them")
    return arrays
