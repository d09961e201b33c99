"""The log files of a run, and what trackers get."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from diffpipe import output
from diffpipe.files import atomic_file, open_regular, open_writable
from diffpipe.interfaces import Batch
from diffpipe.plural import plural
from diffpipe.train.runtime import Runtime

_PENDING = 1 << 20
"""Bytes of lines that are kept while they find no room."""


class LogFile:
    """A file of JSON lines, opened to append. It never stops a run: where it cannot be written, a warning says so.

    Lines that found no room are kept, and written before the next one.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool], warn: Callable[[str], object]):
        """keep: whether a line that is there stays. Lines that are not JSON objects are dropped, with a warning."""
        self._path, self._warn = path, warn
        self._file: BinaryIO | None = None
        self._pending = b""
        self._failed, self._lost = False, 0
        try:
            path.parent.mkdir(exist_ok=True)
            self._rewrite(keep)
            self._file = self._open()
            self._end = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            warn(f"{path}: {error.strerror}: this log file is not written; the run goes on without it")

    def write(self, values: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._pending += json.dumps(values).encode() + b"\n"
            self._write_pending()

    def _write_pending(self) -> None:
        assert self._file is not None
        try:
            rest = memoryview(self._pending)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._drop_partial_line(reopen=error.errno == errno.ESTALE)
            if not self._failed:
                self._warn(
                    f"{self._path}: {error.strerror}: a line cannot be written; the run goes on, and writes it later"
                )
            self._failed = True
            if len(self._pending) > _PENDING:
                cut = self._pending.index(b"\n", len(self._pending) - _PENDING) + 1
                self._lost += self._pending.count(b"\n", 0, cut)
                self._pending = self._pending[cut:]
            return
        self._end += len(self._pending)
        self._failed, self._pending = False, b""

    def close(self) -> None:
        if self._file is not None:
            if self._pending:
                self._write_pending()
            if lost := self._lost + self._pending.count(b"\n"):
                self._warn(f"{self._path}: {plural(lost, 'line', 'lines')} could not be written")
            with contextlib.suppress(OSError):  # of a network file system: a warning came with the line
                self._file.close()

    def _open(self) -> BinaryIO:
        return os.fdopen(open_writable(self._path), "r+b", buffering=0)

    def _rewrite(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that are not to stay. The file is untouched where all are."""
        try:
            descriptor = open_regular(self._path, follow_links=True)
        except FileNotFoundError:
            return
        stays, damaged = bytearray(), 0
        with os.fdopen(descriptor, "rb") as file:  # line by line: it may not fit into memory
            for line in file:
                whole = line.endswith(b"\n")  # a killed run can leave a partial last line
                values = parse_line(line) if whole else None
                damaged += whole and values is None
                stays.append(values is not None and keep(values))
            if damaged:
                self._warn(
                    f"{self._path}: {plural(damaged, 'damaged line is', 'damaged lines are')} dropped; the run does "
                    "not depend on them"
                )
            if not all(stays):
                file.seek(0)
                with atomic_file(self._path) as new:
                    new.writelines(itertools.compress(file, stays))

    def _drop_partial_line(self, *, reopen: bool) -> None:
        """Cut the file after its last whole line. reopen: a file server that was restarted no longer knows the file."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            if reopen:
                stale, self._file = self._file, self._open()
                with contextlib.suppress(OSError):
                    stale.close()
                self._end = min(self._end, self._file.seek(0, os.SEEK_END))
            self._file.truncate(self._end)
            self._file.seek(self._end)


class MetricsLog:
    """metrics.jsonl and the trackers, written by rank 0, one line per log step.

    step: the step that training resumes from. Lines of later steps, from a killed run, are dropped: these steps are
    trained again. on_log: called with the values of each line, without the step, and the step.
    """

    def __init__(
        self,
        path: Path,
        runtime: Runtime,
        step: int,
        on_log: Callable[[Mapping[str, Any], int], None] | None = None,
    ):
        self.runtime, self._on_log = runtime, on_log
        self._file = None
        if runtime.main:
            self._file = LogFile(path, lambda values: values["step"] <= step, functools.partial(_warn, runtime))
            runtime.trackers.replay(lambda: _lines(path))

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(values)
            tracked = {k: v for k, v in values.items() if k != "step"}
            self.runtime.trackers.log(tracked, values["step"])
            if self._on_log is not None:
                self._on_log(tracked, values["step"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class SampleLog:
    """seen/rank-00000.jsonl: the keys and positions of each step's samples.

    A step that is trained again after a resume has a second line.
    """

    def __init__(self, run_dir: Path, rank: int):
        path = run_dir / "seen" / f"rank-{rank:05d}.jsonl"
        self._file = LogFile(path, lambda _: True, lambda message: _print(f"warning: {message}"))

    def write(self, step: int, batches: list[Batch]) -> None:
        keys = [key for batch in batches for key in batch.keys]
        positions = [p for batch in batches for p in batch.positions.tolist()]
        self._file.write({"step": step, "keys": keys, "positions": positions})

    def close(self) -> None:
        self._file.close()


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """The values of a line of a log file, or None where it is damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The values of each line of a log file; none where it cannot be read."""
    with contextlib.suppress(OSError), os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        yield from filter(None, map(parse_line, file))


def print_on_rank_zero(runtime: Runtime, message: str) -> None:
    """Print a line to stderr, on rank 0 only."""
    if runtime.main:
        _print(message)


def _warn(runtime: Runtime, message: str) -> None:
    print_on_rank_zero(runtime, f"warning: {message}")


def _print(message: str) -> None:
    with tqdm.external_write_mode(sys.stderr):  # above a progress bar, and not behind it
        output.current.remark(message)
