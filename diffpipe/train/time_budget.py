"""A budget of training time, `train.minutes`: the last step is a function of the times that are recorded as a run goes.

The clock is read at log steps alone, by rank 0. What it says is recorded in training_time.jsonl and in checkpoints, and
all that depends on it, the last step and by it the learning rate, is computed from the records. So a resume that trains
steps again trains them with the same learning rates.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffpipe.train.checkpoint.state import TrainingTime
from diffpipe.train.logs import LogFile, print_on_rank_zero
from diffpipe.train.runtime import Runtime

JOURNAL = "training_time.jsonl"


class TimedStep(NamedTuple):
    """The training time, in seconds, after so many steps."""

    step: int
    seconds: float


class TimeBudget:
    """The last step of a run: `steps`, or earlier where `minutes` of training are over before.

    Time counts while steps are trained: not at the start of a job, nor while it saves, samples or scores. Until the
    next record, each step is taken to be as long as the steps have been in the mean.
    """

    def __init__(self, steps: int, minutes: float | None):
        self.steps, self.minutes = steps, minutes
        self._records = [TimedStep(0, 0.0)]
        self._journal: LogFile | None = None

    def last_step(self, step: int) -> int:
        """The last step as it is known after `step` steps: later than `step`, unless that is the last one."""
        last = self.steps
        if self.minutes is None:
            return last
        first = self._records[0].step
        known = bisect.bisect_right(self._records, step, key=lambda record: record.step)
        at, seconds = self._records[max(known, 1) - 1]
        if seconds > 0:
            left = (60 * self.minutes - seconds) * (at - first) / seconds
            # The step after a record is trained in any case, so that the hooks of the last step know it.
            last = max(at + 1, at + int(min(left, self.steps)))
        return min(self.steps, last)

    def state(self, step: int) -> TrainingTime | None:
        """The last record for a checkpoint after `step` steps; None without a budget of time."""
        if self.minutes is None:
            return None
        records = [record for record in self._records if record.step <= step]
        return TrainingTime(first=self._records[0].step, **records[-1]._asdict())

    def restore(self, stored: TrainingTime | None, step: int) -> None:
        """Go on from a checkpoint. Where it was saved without a budget of time, the time begins at its step."""
        if stored is None:
            self._records = [TimedStep(step, 0.0)]
            return
        self._records = [TimedStep(stored.first, 0.0)]
        if stored.step > stored.first:
            self._records.append(TimedStep(stored.step, stored.seconds))

    @contextlib.contextmanager
    def recorded(self, run_dir: Path, runtime: Runtime) -> Iterator[None]:
        """While training: records go to the journal, and those of steps that are trained again come from it.

        A collective. A journal that cannot be written never stops a run.
        """
        if self.minutes is None:
            yield
            return
        later: list[TimedStep] = []
        last = self._records[-1].step

        def keep(line: dict[str, object]) -> bool:
            step, seconds = line.get("step"), line.get("seconds")
            if type(step) is not int or type(seconds) is not float or not seconds > 0:
                return False
            if 0 < last < step:
                later.append(TimedStep(step, seconds))
            return last > 0  # a run from scratch begins its own

        def open_journal() -> list[TimedStep]:
            self._journal = LogFile(
                run_dir / JOURNAL, keep, lambda message: print_on_rank_zero(runtime, f"warning: {message}")
            )
            return sorted(set(later))

        self._records += runtime.comm.on_rank_zero(open_journal)
        try:
            yield
        finally:
            if self._journal is not None:
                self._journal.close()

    def record(self, first: int, step: int, seconds: float, runtime: Runtime) -> None:
        """Record that the steps after `first` until `step` took so long on rank 0. A collective, at log steps.

        Steps that were trained before, and the last step, have their record already.
        """
        last = self._records[-1]
        if self.minutes is None or step <= last.step or step >= self.last_step(step):
            return
        share = (step - max(first, last.step)) / (step - first)  # the rest was trained before
        entry = runtime.comm.on_rank_zero(lambda: TimedStep(step, last.seconds + share * seconds))
        self._records.append(entry)
        if self._journal is not None:
            self._journal.write(entry._asdict())
