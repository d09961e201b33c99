"""The file that Weights & Biases writes offline: blocks of 32 KiB as in a LevelDB log, of protobuf records."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffpipe.files import read_regular

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, and which part of a record it is
_WHOLE, _FIRST, _LAST = 1, 2, 4


def last_step(folder: Path) -> int:
    """The last step in the folder of an offline run; -1 where there is none."""
    steps = [r.history.step.num for file in folder.glob("run-*.wandb") for r in records(file) if r.HasField("history")]
    return max(steps, default=-1)


def records(file: Path) -> Iterator[Any]:
    """The records of a file, up to where a killed job has left it. Raises OSError."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 (comes with it)
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415 # pyright: ignore (an extra)

    content = read_regular(file)
    position, record = 7, b""  # after the name and the version of the format
    while True:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:  # filled with zeros
            position += left
        if position + _HEADER.size > len(content):
            return
        _, length, part = _HEADER.unpack_from(content, position)
        position += _HEADER.size
        if position + length > len(content):
            return
        data = content[position : position + length]
        record = data if part in (_WHOLE, _FIRST) else record + data
        position += length
        if part in (_WHOLE, _LAST):
            try:
                parsed = Record.FromString(record)
            except DecodeError:  # a full disk has left a gap in the file
                return
            yield parsed
