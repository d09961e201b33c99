"""The progress of training, for people to read: a bar on a terminal, and lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from diffpipe.plural import duration
from diffpipe.progress_bar import progress_bar
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

SECONDS = 10.0  # between two lines


class TrainProgress:
    """The steps of a run as they are done, on rank 0. `close` it at the end.

    total, first: the last step, and the step to start from. terminal: whether people look at a terminal; None: whether
    stderr is one. There it is a bar. In a file it is a line at the first and the last log step, and between them at
    those that are `SECONDS` apart.
    """

    def __init__(
        self,
        total: int,
        first: int,
        runtime: Runtime,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._runtime, self._clock = total, runtime, clock
        self._next = clock()
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = progress_bar(
            "train" if terminal else None, "step", total, first=first, shown=runtime.main, terminal=terminal
        )

    def step_done(self) -> None:
        self._bar.update()

    def log(self, values: Mapping[str, Any], total: int | None = None) -> None:
        """values: those of a log step, as in metrics.jsonl. total: the last step, where it has changed."""
        self._total = total or self._total
        words = [f"loss {values['loss']:.4f}", f"{values['images_per_second']:.0f} images/s"]
        if not self._bar.disable:
            assert isinstance(self._bar, tqdm)
            self._bar.total = self._total
            self._bar.set_postfix_str(", ".join(words))
            return
        step = values["step"]
        if self._clock() < self._next and step < self._total:
            return
        self._next = self._clock() + SECONDS
        words.append(f"{100 * values['data_wait']:.0f}% of the time waiting for data")
        if step < self._total:
            images_per_step = values["images"] / step
            left = (self._total - step) * images_per_step / values["images_per_second"]
            words.append(f"{duration(left)} left")
        print_on_rank_zero(self._runtime, f"step {step}/{self._total}: {', '.join(words)}")

    def close(self) -> None:
        self._bar.close()
