"""The status of runs as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from diffpipe.experiment.run_status import RunStatus
from diffpipe.output import printable
from diffpipe.plural import duration

_LONGEST = 160  # characters of a reason
_HEADINGS = ("run", "state", "step", "loss", "images/s", "score", "age", "")


def status_table(statuses: Sequence[RunStatus]) -> str:
    """A line for each run, the columns aligned."""
    rows = [_HEADINGS, *map(_cells, statuses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(status: RunStatus) -> tuple[str, ...]:
    step = "" if status.step is None else f"{status.step}/{'?' if status.steps is None else status.steps}"
    score = "" if status.score is None else f"{status.score['name']} {status.score['value']:.4g}"
    where = "" if status.host is None else f"process {status.process or '?'} on {status.host}"
    return (
        printable(str(status.run)),
        status.state,
        step,
        "" if status.loss is None else f"{status.loss:.4f}",
        "" if status.images_per_second is None else f"{status.images_per_second:.0f}",
        printable(score),
        "" if status.age is None else duration(status.age),
        printable((status.reason or where)[:_LONGEST]),
    )
