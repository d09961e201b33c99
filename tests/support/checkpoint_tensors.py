"""A checkpoint's tensors put together from their parts, by the published format of safetensors and nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

DTYPES = {"F64": np.float64, "F32": np.float32, "I64": np.int64, "I32": np.int32}


class Part(NamedTuple):
    """The values that one file holds of a tensor, and their offsets in it."""

    file: str
    name: str
    offsets: tuple[int, ...]
    values: np.ndarray


def parts(checkpoint: Path) -> Iterator[Part]:
    """A file is 8 bytes with the length of its header, the header as JSON, and the data that it points into."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        raw = path.read_bytes()
        begin = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:begin])
        about = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            values = np.frombuffer(raw[begin + first : begin + last], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            offsets = about.get(name, {}).get("saved_offsets", [0] * values.ndim)
            yield Part(path.name, name, tuple(offsets), values)


def consolidated(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor, whole. Its parts must fill it, each place once."""
    by_name: dict[str, list[Part]] = {}
    for part in parts(checkpoint):
        by_name.setdefault(part.name, []).append(part)
    tensors = {}
    for name, pieces in by_name.items():
        ends = [np.add(piece.offsets, piece.values.shape) for piece in pieces]
        shape = tuple(int(n) for n in np.max(ends, axis=0)) if pieces[0].values.ndim else ()
        whole, filled = np.empty(shape, pieces[0].values.dtype), np.zeros(shape, int)
        for piece in pieces:
            places = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.values.shape, strict=True))
            whole[places] = piece.values
            filled[places] += 1
        assert (filled == 1).all(), name
        tensors[name] = whole
    return tensors
