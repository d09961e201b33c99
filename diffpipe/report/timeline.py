"""The jobs of a run as a page shows them: one line for all of them, and a row for each."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from diffpipe.plural import duration, plural
from diffpipe.report.axis import step_axis
from diffpipe.report.run_jobs import RunJob

MOST_JOBS = 200
"""The newest jobs that are shown."""


def timeline(jobs: Sequence[RunJob], last: float) -> dict[str, Any]:
    """One line for all jobs: bars, the ends of jobs and what happened in them, at places in percent of all steps."""

    def place(step: int | float) -> float:
        return round(100 * min(step, last) / last, 2)

    shown = jobs[-MOST_JOBS:]
    return {
        "bars": [(place(job.first), round(place(job.last) - place(job.first), 2)) for job in shown],
        "ends": [(place(job.last), job.end) for job in shown if job.end in ("stop", "fail", "killed")],
        "marks": [(place(mark.step), mark.kind) for job in shown for mark in job.marks],
        "labels": [(100 * at, text) for at, text in step_axis(last).labels],
    }


def job_rows(jobs: Sequence[RunJob]) -> list[dict[str, Any]]:
    """The newest jobs, the last one first."""
    rows = []
    for i, job in enumerate(jobs):
        lost = job.last - jobs[i + 1].first if i + 1 < len(jobs) else 0
        again = f"; {plural(f'{lost:,}', 'step')} trained again" if lost > 0 else ""
        about = [
            "" if job.began is None else when(job.began),
            "" if job.seconds is None else duration(job.seconds),
            _where(job),
        ]
        rows.append(
            {
                "title": f"Steps {job.first:,} to {job.last:,}{', resumed' if job.resumed else ''}",
                "about": " · ".join(filter(None, about)),
                "end": job.end,
                "end_text": f"{_end_text(job)}{again}",
                "happened": [(f"{mark.step:,.0f}", mark.kind, mark.text) for mark in job.marks],
            }
        )
    return rows[: -MOST_JOBS - 1 : -1]


def _where(job: RunJob) -> str:
    parts = [plural(job.processes, "process", "processes")] if job.processes else []
    return " on ".join([*parts, *([job.host] if job.host else [])])


def _end_text(job: RunJob) -> str:
    return {
        "running": "running",
        "finish": "finished",
        "stop": f"stopped by {job.reason}",
        "fail": f"failed: {job.reason}",
        "killed": "killed or lost: it wrote no last line",
        "unknown": "",
    }[job.end]


def when(seconds: float) -> str:
    """A time of this machine's zone, such as `30 Nov 2026, 06:12`."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%d %b %Y, %H:%M").lstrip("0")
