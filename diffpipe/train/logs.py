"""The log files of a run, the tracker and the progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from diffpipe.files import atomic_write
from diffpipe.interfaces import Batch
from diffpipe.train.runtime import Runtime


class MetricsLog:
    """metrics.jsonl and the tracker, written by rank 0, one line per log step.

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
            self._file = _reopen(path, [line for line in _whole_lines(path) if json.loads(line)["step"] <= step])

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            tracked = {k: v for k, v in values.items() if k != "step"}
            self.runtime.track(tracked, step=values["step"])
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
        path.parent.mkdir(exist_ok=True)
        self._file = _reopen(path, _whole_lines(path))

    def write(self, step: int, batches: list[Batch]) -> None:
        keys = [key for batch in batches for key in batch.keys]
        positions = [p for batch in batches for p in batch.positions.tolist()]
        self._file.write(json.dumps({"step": step, "keys": keys, "positions": positions}) + "\n")

    def close(self) -> None:
        self._file.close()


def progress_bar(name: str | None, unit: str, total: int, runtime: Runtime, first: int = 0) -> tqdm:
    """A progress bar on rank 0. name: None shows none. unit: what is counted. first: the count it begins with."""
    return tqdm(
        initial=first,
        total=total,
        disable=name is None or not runtime.main,
        unit=unit,
        desc=name,
        dynamic_ncols=True,
        mininterval=1 if sys.stderr.isatty() else 15,  # in a log file, each redraw is a line
    )


def _reopen(path: Path, lines: list[str]) -> TextIO:
    """The file with these lines as its content, open to append lines."""
    atomic_write(path, "".join(lines))
    return path.open("a", buffering=1)


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of the file; a killed run can leave a partial last line."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def print_on_rank_zero(runtime: Runtime, message: str) -> None:
    """Print a line to stderr, on rank 0 only."""
    if runtime.main:
        print(message, file=sys.stderr, flush=True)
