"""The table of a comparison: its columns, the format of their numbers, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from diffpipe.metrics.names import KID_FACTOR, parse_metric
from diffpipe.report.run_summary import RunSummary

DASH = "—"
REAL_IMAGES = "real images"


class Comparison(NamedTuple):
    """The figures of compared runs.

    floor: the real images' scores by metric; None where no run generates. formats: bits/dim on disk by file format,
    each image a file; None where no compression was asked for. remarks: sentences on the scores.
    """

    summaries: Sequence[RunSummary]
    floor: Mapping[str, float] | None
    protocol: Mapping[str, Any]
    formats: Mapping[str, float] | None = None
    remarks: Sequence[str] = ()

    def scores(self) -> dict[str, float]:
        """Each run's scores and bits/dim, by `RUN: metric`."""
        scores: dict[str, float] = {}
        for run in self.summaries:
            bits = {"bits_per_dim": run.bits_per_dim["value"]} if run.bits_per_dim else {}
            scores |= {f"{run.name}: {metric}": value for metric, value in {**(run.scores or {}), **bits}.items()}
        return scores

    def tree(self) -> dict[str, Any]:
        """The contents of compare.json as JSON values."""
        return {
            "scores": self.scores(),
            "families": [asdict(summary) for summary in self.summaries],
            "floor": self.floor or {},
            "formats": self.formats,
            "protocol": self.protocol,
        }


@dataclass(frozen=True)
class TableColumn:
    """One column: a number of each run.

    missing: the field of `RunSummary.missing` with the reason for an absent value. better: the direction in which the
    best value is marked. comparable: whether a run's value may be compared with the others'. floor: real images' value.
    """

    title: str
    value: Callable[[RunSummary], float | None]
    show: Callable[[float], str]
    missing: str
    better: Literal["lower", "higher"] | None = None
    note: Callable[[RunSummary], str] = lambda _: ""
    comparable: Callable[[RunSummary], bool] = lambda _: True
    floor: float | None = None

    @property
    def heading(self) -> str:
        return self.title + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]

    def best(self, summaries: Sequence[RunSummary]) -> set[str]:
        """The name of the run with the best value; empty where fewer than two values can be compared, and at a tie."""
        values = {
            run.name: float(value)
            for run in summaries
            if self.comparable(run) and (value := self.value(run)) is not None
        }
        if self.better is None or len(values) < 2:
            return set()
        best = self.show((min if self.better == "lower" else max)(values.values()))
        names = {name for name, value in values.items() if self.show(value) == best}  # equal as shown: equally good
        return names if len(names) == 1 else set()

    def text(self, summary: RunSummary) -> str | None:
        """The formatted value, or None where the run has none."""
        value = self.value(summary)
        return None if value is None else self.show(float(value))


def _get(fields: Mapping[str, Any] | None, key: str) -> float | None:
    return None if fields is None else fields[key]


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    decimal_places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return decimals(decimal_places)(value)


def with_unit_letter(value: float) -> str:
    """Three significant digits and k, M or G."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return three_digits(value / unit) + letter
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours: the largest unit of which there are at least two."""
    for unit, letter in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {letter}"
    return f"{seconds:.0f} s"


def decimals(digits: int, factor: int = 1) -> Callable[[float], str]:
    """A format of the value times the factor, with so many decimals."""
    return lambda value: f"{value * factor:,.{digits}f}".replace("-", "−")


def _bits_note(summary: RunSummary) -> str:
    """bound, exact or estimate, and the unit where it is not bits/dim of the images themselves."""
    bits = summary.bits_per_dim
    return f"{bits['kind']}{bits['unit'].removeprefix('bits/dim')}" if bits else ""


_BITS = TableColumn(
    "bits/dim",
    lambda run: _get(run.bits_per_dim, "value"),
    decimals(3),
    "bits_per_dim",
    "lower",
    note=_bits_note,
    comparable=lambda run: run.bits_per_dim is not None and run.bits_per_dim["unit"] == "bits/dim",
)
ON_DISK = TableColumn("bits/dim on disk", lambda run: _get(run.compressed, "value"), decimals(3), "compressed", "lower")
FORMAT_STAGE = "lossless, each image a file"
_RECONSTRUCTION = TableColumn(
    "reconstruction MSE", lambda run: _get(run.reconstruction, "value"), decimals(4), "reconstruction", "lower"
)
_SPEED = "images_per_second"
COST_COLUMNS = [
    TableColumn("training images/s", lambda run: _get(run.training, _SPEED), three_digits, "training", "higher"),
    TableColumn("training time", lambda run: _get(run.training, "seconds"), duration, "training"),
    TableColumn("images seen", lambda run: run.images_seen, lambda value: f"{value:,.0f}", "images_seen"),
    TableColumn("sampling images/s", lambda run: _get(run.sampling, _SPEED), three_digits, "sampling", "higher"),
    TableColumn(
        "evaluations per image",
        lambda run: _get(run.sampling, "evaluations"),
        lambda value: f"{value:g}",
        "evaluations",
    ),
    TableColumn("parameters that generate", lambda run: run.parameters["generating"], with_unit_letter, "sampling"),
    TableColumn("parameters in all", lambda run: run.parameters["all"], with_unit_letter, "parameters"),
]


def quality_columns(
    metrics: Collection[str], floor: Mapping[str, float] | None, *, compressed: bool = False
) -> list[TableColumn]:
    """The columns of the scores, the likelihood, with `compressed` the size on disk, and the reconstruction error."""
    name_extractor = len({parse_metric(name).extractor for name in metrics}) > 1
    scores = [_score_column(name, name_extractor, (floor or {}).get(name)) for name in metrics]
    return [*scores, _BITS, *([ON_DISK] if compressed else []), _RECONSTRUCTION]


def markdown(comparison: Comparison) -> str:
    """One table of all columns, the best of each in bold."""
    summaries = comparison.summaries
    compressed = comparison.formats is not None
    quality = quality_columns(comparison.protocol["metrics"], comparison.floor, compressed=compressed)
    columns = [*quality, *COST_COLUMNS]
    lines = [["", "stage", *(column.heading for column in columns)]]
    lines.append([":--", ":--", *("--:" for _ in columns)])
    best = [column.best(summaries) for column in columns]
    for summary in summaries:
        cells = [_cell(column, summary, names) for column, names in zip(columns, best, strict=True)]
        lines.append([summary.name.replace("|", "\\|"), summary.stage, *cells])
    if comparison.floor:
        floor = ["" if column.floor is None else column.show(column.floor) for column in columns]
        lines.append([f"*{REAL_IMAGES}*", "", *floor])
    for name, size in (comparison.formats or {}).items():
        cells = [column.show(size) if column is ON_DISK else "" for column in columns]
        lines.append([f"*{name}*", FORMAT_STAGE, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _score_column(name: str, name_extractor: bool, floor: float | None) -> TableColumn:
    kind, extractor = parse_metric(name)
    title = {"fd": "FID" if extractor == "inception" else "FD", "kid": "KID ×10³"}.get(kind, kind)
    show = {"fd": decimals(1), "kid": decimals(1, KID_FACTOR)}.get(kind, decimals(2))
    better = "lower" if kind in {"fd", "kid"} else "higher"
    title += f" ({extractor})" if name_extractor else ""
    return TableColumn(title, lambda run: _get(run.scores, name), show, "scores", better, floor=floor)


def _cell(column: TableColumn, summary: RunSummary, best: set[str]) -> str:
    text = column.text(summary)
    if text is None:
        return DASH
    note = column.note(summary)
    return (f"**{text}**" if summary.name in best else text) + (f" ({note})" if note else "")
