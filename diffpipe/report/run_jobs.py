"""The jobs that trained a run, from events.jsonl: where each began and ended, and why it ended."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from diffpipe.files import open_regular
from diffpipe.plural import plural
from diffpipe.report.metrics_log import MetricsLog
from diffpipe.run_folder import EVENTS
from diffpipe.train.logs import parse_line

End = Literal["running", "finish", "stop", "fail", "killed", "unknown"]
_MOST_EVENTS = 10_000
_LONGEST_LINE = 1 << 16
_MOST_MARKS = 100
_MOST_SECONDS = 1e11
"""The largest time: a stranger's file may hold any number."""


class Mark(NamedTuple):
    """Something that happened in a job at a log step."""

    step: float
    kind: Literal["skipped", "bad"]
    text: str


@dataclass
class RunJob:
    """One job: the steps from `first` to `last`, and its times in seconds since 1970. processes: 0 where unknown.

    reason: of an end by a signal or an error. resumed: whether it went on from a checkpoint.
    """

    first: int
    began: float | None
    resumed: bool = False
    processes: int = 0
    host: str = ""
    last: int = 0
    ended: float | None = None
    end: End = "killed"
    reason: str = ""
    marks: Sequence[Mark] = ()

    @property
    def seconds(self) -> float | None:
        return None if self.began is None or self.ended is None else max(0.0, self.ended - self.began)


def read_jobs(home: Path, log: MetricsLog, *, running: bool) -> list[RunJob]:
    """The jobs in order. running: whether one holds the run now.

    A run of an older version has no events.jsonl: then there is one job, from the first log line to the last, whose end
    is unknown.
    """
    events = _events(home / EVENTS)
    jobs: list[RunJob] = []
    for event in events:
        step, time = event["step"], _time(event.get("time"))
        if event["event"] in ("start", "resume"):
            processes = event.get("processes")
            jobs.append(
                RunJob(
                    step,
                    time,
                    resumed=event["event"] == "resume",
                    processes=processes if type(processes) is int and processes > 0 else 0,
                    host=str(event.get("host", ""))[:200],
                    last=step,
                )
            )
        elif jobs and event["event"] in ("finish", "stop", "fail"):
            jobs[-1].last, jobs[-1].ended, jobs[-1].end = step, time, event["event"]
            jobs[-1].reason = str(event.get("signal") or event.get("error") or "")[:2000]
    if not jobs and log.lines:
        steps = log.columns["step"].steps
        began, ended = _time(log.at("time", float(steps[0]))), _time(log.last("time"))
        jobs = [RunJob(0, began, last=int(steps[-1]), ended=ended, end="unknown")]
    for job, after in itertools.zip_longest(jobs, jobs[1:]):
        if job.end == "killed":
            _complete(job, after, log)
    if jobs and running:
        jobs[-1].end, jobs[-1].ended = "running", jobs[-1].ended or _time(log.last("time"))
    _add_marks(jobs, log)
    return jobs


def _complete(job: RunJob, after: RunJob | None, log: MetricsLog) -> None:
    """Set the last step and time of a job without a last line, from metrics.jsonl. A resume drops its later lines."""
    end = np.inf if after is None else after.first
    steps = log.columns["step"].steps if log.lines else np.zeros(0)
    within = steps[(steps > job.first) & (steps <= end)]
    if len(within):
        job.last, job.ended = int(within[-1]), _time(log.at("time", float(within[-1])))
    else:
        job.ended = job.began


def _events(path: Path) -> list[dict[str, Any]]:
    """The newest events; none where the file cannot be read."""
    events: list[dict[str, Any]] = []
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                event = parse_line(line)
                if event is not None and 0 <= event["step"] < 1 << 53 and isinstance(event.get("event"), str):
                    events.append(event)
                    events = events[-_MOST_EVENTS:] if len(events) > 2 * _MOST_EVENTS else events
    except OSError:
        return []
    return events[-_MOST_EVENTS:]


def _time(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < _MOST_SECONDS else None


def _add_marks(jobs: Sequence[RunJob], log: MetricsLog) -> None:
    """The log steps at which more updates were skipped or more samples were bad, to the job that logged them."""
    marks = [
        *_increases(log, "skipped", lambda n: f"{plural(n, 'update')} left out: not finite"),
        *_increases(log, "bad", lambda n: f"{plural(n, 'sample')} could not be read"),
    ]
    for job, after in itertools.zip_longest(jobs, jobs[1:]):
        end = np.inf if after is None else after.first
        job.marks = [mark for mark in marks if job.first < mark.step <= end][:_MOST_MARKS]


def _increases(log: MetricsLog, kind: Literal["skipped", "bad"], text: Callable[[str], str]) -> list[Mark]:
    if kind not in log.columns:
        return []
    steps, values = log.columns[kind]
    values = np.where(np.isfinite(values), values, 0)
    more = np.diff(values, prepend=0)
    return [Mark(float(step), kind, text(f"{n:,.0f}")) for step, n in zip(steps, more, strict=True) if n > 0]
