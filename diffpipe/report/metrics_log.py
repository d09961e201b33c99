"""The values in metrics.jsonl, a column for each key. The file may be large, cut short, or somebody else's."""

from __future__ import annotations

import itertools
import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffpipe.files import open_regular
from diffpipe.train.logs import parse_line

_LONGEST_LINE = 1 << 20
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
    """columns: by key, in the order of their first appearance. damaged: the lines that could not be read."""

    columns: dict[str, Column] = field(default_factory=dict)
    lines: int = 0
    damaged: int = 0

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
    """The lines of a metrics.jsonl; no lines where there is no such file.

    A last line without its end is left out: it is being written, or the job was killed. Raises OSError where the file
    is there and cannot be read.
    """
    log = MetricsLog()
    steps: dict[str, array[float]] = {}
    values: dict[str, array[float]] = {}
    try:
        descriptor = open_regular(path, follow_links=True)
    except FileNotFoundError:
        return log
    with os.fdopen(descriptor, "rb") as file:
        while line := file.readline(_LONGEST_LINE):
            entries = parse_line(line)
            if entries is None or not 0 <= entries["step"] < _MOST_STEPS:
                # A last line without its end is being written, or its job was killed.
                log.damaged += line.endswith(b"\n") or len(line) == _LONGEST_LINE
                continue
            log.lines += 1
            for key, value in entries.items():
                number = _number(value)
                known = key in values or (len(values) < _MOST_KEYS and len(key) <= _LONGEST_KEY)
                if number is None or not known:
                    continue
                steps.setdefault(key, array("d")).append(entries["step"])
                values.setdefault(key, array("d")).append(number)
    log.columns = {key: _sorted(np.array(steps[key]), np.array(values[key])) for key in values}
    return log


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
