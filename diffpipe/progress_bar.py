"""The progress of long work: a bar on a terminal, and plain lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from diffpipe import output
from diffpipe.plural import duration, plural

SECONDS = 15.0
"""Seconds between two lines."""


def progress_bar(
    name: str | None, unit: str, total: int, *, first: int = 0, shown: bool = True, terminal: bool | None = None
) -> tqdm | ProgressLines:
    """The progress of work on `total` units, of which `first` are done. A quiet command shows none.

    name: None shows none. unit: what is counted, such as `image`. shown: whether this process shows it. terminal:
    whether people look at a terminal; None: whether stderr is one.
    """
    shown = shown and name is not None and not output.current.quiet
    terminal = sys.stderr.isatty() if terminal is None else terminal
    if shown and not terminal:
        return ProgressLines(str(name), unit, total, first)
    return tqdm(initial=first, total=total, disable=not shown, unit=unit, desc=name, dynamic_ncols=True, mininterval=1)


class ProgressLines:
    """Progress as lines that a file can hold: one each `SECONDS`, and one at the end. See `progress_bar`.

    n: the units that are done.
    """

    def __init__(self, name: str, unit: str, total: int, first: int = 0, clock: Callable[[], float] = time.monotonic):
        self.n, self.total, self.disable = first, total, False
        self._name, self._unit, self._first, self._clock = name, unit, first, clock
        self._start = self._last = clock()

    def update(self, n: int = 1) -> None:
        self.n += n
        if self._clock() - self._last >= SECONDS and self.n < self.total:
            self._last = self._clock()
            self._write()

    def close(self) -> None:
        self._write()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _write(self) -> None:
        seconds = self._clock() - self._start
        done = self.n - self._first
        words = f"{self.n}/{plural(self.total, self._unit)} in {seconds:.0f} s"
        rate = f"{done / seconds:.4g}" if seconds > 0 else "0"
        left = f", {duration(seconds * (self.total - self.n) / done)} left" if done and self.n < self.total else ""
        output.current.remark(f"{self._name}: {words}, {rate} {self._unit}s/s{left}")
