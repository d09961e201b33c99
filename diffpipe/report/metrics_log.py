"""The values in metrics.jsonl, a column for each key. The file may be large, cut short, or somebody else's."""

from __future__ import annotations

import itertools
import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from diffpipe.files import open_regular
from diffpipe.train.logs import parse_line

_LONGEST_LINE = 1 << 20
_MOST_READ, _BLOCK = 1 << 25, 1 << 15
"""Bytes that are read of a larger file, in blocks at equal distances: a page takes seconds, whatever was logged."""
_MOST_KEYS, _LONGEST_KEY = 200, 100
LARGEST, SMALLEST = 1e100, 1e-100
"""Far beyond float32: a larger value is infinite, and a smaller one 0."""
_MOST_STEPS = 1 << 53  # a float holds each of them exactly


class Column(NamedTuple):
    """The values of one key, and the steps that have them. A value may be NaN or infinite."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float | None:
        return float(self.values[-1]) if len(self.values) else None


@dataclass
class MetricsLog:
    """The lines that were read.

    columns: by key, in the order of their first appearance. damaged: the lines that could not be read. share: of the
    file, 1 where all of it was read.
    """

    columns: dict[str, Column] = field(default_factory=dict)
    lines: int = 0
    damaged: int = 0
    share: float = 1.0

    def last(self, key: str) -> float | None:
        """The last value of a key, if it is finite."""
        value = self.columns[key].last if key in self.columns else None
        return value if value is not None and math.isfinite(value) else None

    def at(self, key: str, step: float) -> float | None:
        """The value of a key at the last of its lines up to a step."""
        column = self.columns.get(key)
        i = 0 if column is None else int(np.searchsorted(column.steps, step, side="right"))
        return float(column.values[i - 1]) if column is not None and i else None


def read_metrics(path: Path) -> MetricsLog:
    """The lines of a metrics.jsonl, or an even share of those of a large one; no lines where there is no such file.

    A last line without its end is left out: it is being written, or the job was killed. Raises OSError where the file
    is there and cannot be read.
    """
    log = MetricsLog()
    read: dict[str, tuple[array[float], array[float]]] = {}
    try:
        descriptor = open_regular(path, follow_links=True)
    except FileNotFoundError:
        return log
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        log.share = min(1.0, _MOST_READ / size) if size else 1.0
        for line in _lines(file, size):
            entries = parse_line(line)
            if entries is None or not 0 <= entries["step"] < _MOST_STEPS:
                # A last line without its end is being written, or its job was killed.
                log.damaged += line.endswith(b"\n") or len(line) == _LONGEST_LINE
                continue
            log.lines += 1
            step = entries["step"]
            for key, value in entries.items():
                usual = type(value) is float and SMALLEST < abs(value) < LARGEST
                number = value if usual else _number(value)
                column = read.get(key)
                if column is None and len(read) < _MOST_KEYS and len(key) <= _LONGEST_KEY and number is not None:
                    column = read[key] = (array("d"), array("d"))
                if column is not None and number is not None:
                    column[0].append(step)
                    column[1].append(number)
    log.columns = {key: _sorted(np.array(steps), np.array(values)) for key, (steps, values) in read.items()}
    return log


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The lines; of a large file, those of blocks at equal distances. The first and the last line are among them."""
    if size <= _MOST_READ:
        while line := file.readline(_LONGEST_LINE):
            yield line
        return
    blocks = _MOST_READ // _BLOCK
    for i in range(blocks):
        start = i * (size - _BLOCK) // (blocks - 1)
        file.seek(start)
        left = _BLOCK
        if start:
            left -= len(file.readline(_LONGEST_LINE))  # the rest of a line
        while left > 0 and (line := file.readline(_LONGEST_LINE)):
            left -= len(line)
            yield line


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > LARGEST:
        return math.inf if value > 0 else -math.inf
    return 0.0 if abs(value) < SMALLEST else float(value)


def _sorted(steps: np.ndarray, values: np.ndarray) -> Column:
    """In the order of the steps, the last line of each step."""
    if (np.diff(steps) > 0).all():
        return Column(steps, values)
    last = dict(zip(steps.tolist(), itertools.count()))
    order = [last[step] for step in sorted(last)]
    return Column(steps[order], values[order])
