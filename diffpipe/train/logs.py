"""What a run says of itself: metrics.jsonl, the tracker, the progress bar, and which samples it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from diffpipe.files import atomic_write
from diffpipe.interfaces import Batch
from diffpipe.train.runtime import Runtime


class MetricsLog:
    """metrics.jsonl and the tracker, written by rank 0, one line a log step.

    Opened at the step that training goes on from: lines that a killed run wrote beyond it are dropped, since those
    steps come again.
    """

    def __init__(self, path: Path, runtime: Runtime, step: int):
        self.runtime = runtime
        self._file = None
        if runtime.main:
            self._file = _reopen(path, [line for line in _whole_lines(path) if json.loads(line)["step"] <= step])

    def write(self, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self.runtime.track({k: v for k, v in values.items() if k != "step"}, step=values["step"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class SampleLog:
    """seen/rank-00000.jsonl: the keys and positions of each step's samples, however often the step is trained."""

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
    """Units done, their rate, and the time left; on rank 0 only. None as name: nothing is shown."""
    return tqdm(
        initial=first,
        total=total,
        disable=name is None or not runtime.main,
        unit=unit,
        desc=name,
        dynamic_ncols=True,
        mininterval=1 if sys.stderr.isatty() else 15,  # a log file gets a line a redraw
    )


def _reopen(path: Path, lines: list[str]) -> TextIO:
    """The file with these lines in it, open to append whole lines."""
    atomic_write(path, "".join(lines))
    return path.open("a", buffering=1)


def _whole_lines(path: Path) -> list[str]:
    """The lines of the file that end as lines do; a killed run can leave half of one."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def print_on_rank_zero(runtime: Runtime, message: str) -> None:
    """One line, from rank 0."""
    if runtime.main:
        print(message, file=sys.stderr, flush=True)
