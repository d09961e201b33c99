"""The status of runs as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diffpipe.experiment.run_status import RunStatus
from diffpipe.metrics.names import shown_name, shown_value
from diffpipe.output import printable
from diffpipe.plural import duration

_LONGEST = 160  # characters of a reason
_HEADINGS = ("run", "state", "step", "stage", "loss", "images/s", "score", "age", "")


def status_table(statuses: Sequence[RunStatus]) -> str:
    """A line for each run, the columns aligned."""
    rows = [_HEADINGS, *map(_cells, statuses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(status: RunStatus) -> tuple[str, ...]:
    step = "" if status.step is None else f"{status.step}/{'?' if status.steps is None else status.steps}"
    score = ""
    if status.score is not None:
        name, value = status.score["name"], status.score["value"]
        older = status.score["step"] not in (None, status.step)
        score = f"{shown_name(name)} {shown_value(name, value):.4g}"
        score += f" at step {status.score['step']}" if older else ""
    where = "" if status.host is None else f"process {status.process or '?'} on {status.host}"
    return (
        printable(str(status.run)),
        status.state,
        step,
        printable(status.stage or ""),
        "" if status.loss is None else f"{status.loss:.4f}",
        "" if status.images_per_second is None else f"{status.images_per_second:.0f}",
        printable(score),
        "" if status.age is None else duration(status.age),
        printable((status.reason or where)[:_LONGEST]),
    )
