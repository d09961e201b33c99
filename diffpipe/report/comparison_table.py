"""The table that `diffpipe compare` makes: its columns, how their numbers read, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from diffpipe.metrics.evaluate import parse_metric
from diffpipe.report.run_summary import RunSummary

DASH = "—"
REAL = "real images"


class Comparison(NamedTuple):
    """What compare.json holds. floor: by metric, what real images score; None where no family generates."""

    summaries: Sequence[RunSummary]
    floor: Mapping[str, float] | None
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class TableColumn:
    """One quantity of each family.

    missing: the field of `Family.missing` that tells why it is not there. better: which value is marked as the best.
    alike: whether a family's value may be compared with the others'. floor: real images' value.
    """

    title: str
    value: Callable[[RunSummary], float | None]
    show: Callable[[float], str]
    missing: str
    better: Literal["lower", "higher"] | None = None
    note: Callable[[RunSummary], str] = lambda _: ""
    alike: Callable[[RunSummary], bool] = lambda _: True
    floor: float | None = None

    @property
    def heading(self) -> str:
        return self.title + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]

    def best(self, summaries: Sequence[RunSummary]) -> set[str]:
        """The names of the families whose value is the best, where there is anything to compare."""
        values = {f.name: float(v) for f in summaries if self.alike(f) and (v := self.value(f)) is not None}
        if self.better is None or len(values) < 2:
            return set()
        best = self.show((min if self.better == "lower" else max)(values.values()))
        return {name for name, value in values.items() if self.show(value) == best}  # what reads the same is as good

    def text(self, summary: RunSummary) -> str | None:
        """The value as it reads, or None where the family has none."""
        value = self.value(summary)
        return None if value is None else self.show(float(value))


def _of(part: Mapping[str, Any] | None, key: str) -> float | None:
    return None if part is None else part[key]


def figures(value: float) -> str:
    """Three figures, no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def count(value: float) -> str:
    """Thousands and millions by their letter."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return figures(value / unit) + letter
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    for unit, letter in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {letter}"
    return f"{seconds:.0f} s"


def decimals(digits: int, factor: int = 1) -> Callable[[float], str]:
    return lambda value: f"{value * factor:,.{digits}f}".replace("-", "−")


def bits_note(summary: RunSummary) -> str:
    """bound, exact or estimate; and of what, where it is not of the images themselves."""
    bits = summary.bits_per_dim
    return f"{bits['kind']}{bits['unit'].removeprefix('bits/dim')}" if bits else ""


_BITS = TableColumn(
    "bits/dim",
    lambda f: _of(f.bits_per_dim, "value"),
    decimals(3),
    "bits_per_dim",
    "lower",
    note=bits_note,
    alike=lambda f: f.bits_per_dim is not None and f.bits_per_dim["unit"] == "bits/dim",
)
_RECONSTRUCTION = TableColumn(
    "reconstruction MSE", lambda f: _of(f.reconstruction, "value"), decimals(4), "reconstruction", "lower"
)
COST = [
    TableColumn("training images/s", lambda f: _of(f.training, "images_per_second"), figures, "training", "higher"),
    TableColumn("training time", lambda f: _of(f.training, "seconds"), duration, "training"),
    TableColumn("images seen", lambda f: f.images_seen, lambda v: f"{v:,.0f}", "images_seen"),
    TableColumn("sampling images/s", lambda f: _of(f.sampling, "images_per_second"), figures, "sampling", "higher"),
    TableColumn("evaluations an image", lambda f: _of(f.sampling, "evaluations"), lambda v: f"{v:g}", "evaluations"),
    TableColumn("parameters that generate", lambda f: f.parameters["generating"], count, "sampling"),
    TableColumn("parameters in all", lambda f: f.parameters["all"], count, "parameters"),
]


def quality(metrics: Collection[str], floor: Mapping[str, float] | None) -> list[TableColumn]:
    """How good the images are, and how well the family explains and keeps real ones."""
    several = len({parse_metric(name).extractor for name in metrics}) > 1
    return [*(_metric(name, several, (floor or {}).get(name)) for name in metrics), _BITS, _RECONSTRUCTION]


def markdown(comparison: Comparison) -> str:
    """One table to be pasted, the best of each column in bold."""
    summaries = comparison.summaries
    columns = [*quality(comparison.protocol["metrics"], comparison.floor), *COST]
    lines = [["", "stage", *(column.heading for column in columns)]]
    lines.append([":--", ":--", *("--:" for _ in columns)])
    best = [column.best(summaries) for column in columns]
    for summary in summaries:
        cells = [_cell(column, summary, marked) for column, marked in zip(columns, best, strict=True)]
        lines.append([summary.name.replace("|", "\\|"), summary.stage, *cells])
    if comparison.floor:
        lines.append([f"*{REAL}*", "", *("" if c.floor is None else c.show(c.floor) for c in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metric(name: str, several: bool, floor: float | None) -> TableColumn:
    kind, extractor = parse_metric(name)
    inception = extractor == "inception"
    title = {"fd": "FID" if inception else "FD", "kid": "KID ×10³"}.get(kind, kind)
    show = {"fd": decimals(1), "kid": decimals(1, 1000)}.get(kind, decimals(2))
    better = "lower" if kind in {"fd", "kid"} else "higher"
    title += f" ({extractor})" if several else ""
    return TableColumn(title, lambda f: _of(f.scores, name), show, "scores", better, floor=floor)


def _cell(column: TableColumn, summary: RunSummary, best: set[str]) -> str:
    text = column.text(summary)
    if text is None:
        return DASH
    note = column.note(summary)
    return (f"**{text}**" if summary.name in best else text) + (f" ({note})" if note else "")
