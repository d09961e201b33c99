"""Arrays in a safetensors file: written piece by piece, wholly or not at all, and mapped into memory.

The safetensors library writes all arrays at once, and its reader may copy them, so that each worker would hold its own
copy of an index. Here the pages belong to the file, and all processes of a node share them.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffpipe.files import atomic_file, open_regular

_DTYPES = {"I64": np.dtype("<i8"), "U32": np.dtype("<u4"), "U8": np.dtype("u1")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 1 << 30


class StreamedArray(NamedTuple):
    """A one-dimensional array of `length` elements, given in pieces."""

    dtype: np.dtype
    length: int
    pieces: Iterable[np.ndarray]


def write_arrays(path: Path, arrays: Mapping[str, StreamedArray], metadata: Mapping[str, str]) -> None:
    """Write arrays, a piece at a time. The file appears whole or not at all. Raises OSError."""
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that each array is aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        dtype, length, _ = arrays[name]
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": [length],
            "data_offsets": [end, end := end + dtype.itemsize * length],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dtype, length, pieces = arrays[name]
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, dtype=dtype).data)
                length -= len(piece)
            assert length == 0


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, read-only and not copied, and its metadata.

    Raises OSError, and ValueError, KeyError or TypeError where the file has another format.
    """
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = int.from_bytes(file.read(8), "little") + 8
        if not 8 < start <= min(size, _MAX_HEADER):
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(start - 8))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    metadata = header.pop("__metadata__")
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not 0 <= begin <= end <= size - start or end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{name} lies outside the file")
        arrays[name] = np.ndarray(shape, dtype, data, start + begin)
    return arrays, metadata
