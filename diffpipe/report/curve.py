"""Curves with few enough points to draw: of a long one, the mean, least and greatest value of each stretch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffpipe.report.axis import Axis, short_text, step_axis, value_axis
from diffpipe.report.metrics_log import Column

MOST_POINTS = 400
_MOST_MARKS = 60
_FEW = 12  # points of a curve that are shown as dots


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    x, mean, low, high: of each point; NaN in `mean` is a gap in the line. last: the last value, if it is finite. lines:
    the most log lines in one point. nonfinite: the places of values that are NaN or infinite, at most some dozens of
    the `nonfinite_count`. dots: whether each point is shown as a dot.
    """

    name: str
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float | None
    lines: int = 1
    nonfinite: Sequence[float] = ()
    nonfinite_count: int = 0
    dots: bool = False

    @property
    def averaged(self) -> bool:
        return self.lines > 1


def curve_of(name: str, column: Column, most: int = MOST_POINTS) -> Curve:
    """The curve of a column. With more than `most` values, each point is the mean of a stretch of equal length.

    A stretch holds its finite values alone; one without any is a gap.
    """
    steps, values = column.steps, column.values
    finite = np.isfinite(values)
    bad = steps[~finite]
    marks = bad[np.linspace(0, len(bad) - 1, min(len(bad), _MOST_MARKS)).astype(int)].tolist() if len(bad) else []
    last = column.last if len(values) and finite[-1] else None
    rest = {"last": last, "nonfinite": marks, "nonfinite_count": len(bad)}
    if len(values) <= most:
        mean = np.where(finite, values, np.nan)
        return Curve(name, steps, mean, mean, mean, dots=len(values) <= _FEW, **rest)
    bins = np.minimum((steps - steps[0]) / (steps[-1] - steps[0]) * most, most - 1).astype(int)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    counts = np.add.reduceat(finite.astype(float), starts)
    lines = int(np.diff(starts, append=len(steps)).max())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = np.add.reduceat(steps, starts) / np.diff(starts, append=len(steps))
        mean = np.where(counts > 0, np.add.reduceat(np.where(finite, values, 0.0), starts) / counts, np.nan)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    return Curve(name, x, mean, low, high, lines=lines, **rest)


@dataclass(frozen=True)
class Plot:
    """Curves over one axis of steps or images, as the template draws it.

    floor: a value to draw as a line across, with its name. unit: of x.
    """

    title: str
    curves: Sequence[Curve]
    x_axis: Axis
    y_axis: Axis
    unit: str = "step"
    percent: bool = False
    floor: tuple[str, float] | None = None
    note: str = ""

    def paths(self, curve: Curve) -> dict[str, str]:
        """SVG paths in a square of 1000 × 1000: the line, its dots, and the band from least to greatest value."""
        xs = [1000 * self.x_axis.place(x) for x in curve.x]
        ys = [self._y(y) for y in curve.mean]
        shown = [(x, y) for x, y in zip(xs, ys, strict=True) if curve.dots and not math.isnan(y)]
        band = ""
        if curve.averaged:
            points = [
                (x, self._y(low), self._y(high))
                for x, low, high in zip(xs, curve.low, curve.high, strict=True)
                if math.isfinite(low)
            ]
            there = " ".join(f"{x:.1f},{high:.1f}" for x, _, high in points)
            back = " ".join(f"{x:.1f},{low:.1f}" for x, low, _ in reversed(points))
            band = f"M{there} {back}Z" if points else ""
        return {"line": _segments(xs, ys), "dots": "".join(f"M{x:.1f},{y:.1f}h0" for x, y in shown), "band": band}

    @property
    def y_labels(self) -> list[tuple[float, str]]:
        """The place of each tick of the y axis, and its number."""
        if self.percent:
            return [(self.y_axis.place(tick), self.text(tick)) for tick in self.y_axis.ticks]
        return self.y_axis.labels

    def text(self, value: float) -> str:
        """A value in few characters."""
        return f"{100 * value:.3g}%" if self.percent else short_text(value)

    @property
    def description(self) -> str:
        """The plot in a sentence, for those who do not see it."""
        ends = []
        for curve in self.curves:
            finite = np.flatnonzero(np.isfinite(curve.mean))
            if len(finite):
                first, last = (self.text(float(curve.mean[i])) for i in finite[[0, -1]])
                ends.append(f"{curve.name} from {first} to {last}")
        return f"{self.title}: {', '.join(ends) or 'no finite value'}"

    def mark_places(self, curve: Curve) -> list[float]:
        """The places of the values that were not finite, in percent of the width."""
        return [round(100 * self.x_axis.place(x), 2) for x in curve.nonfinite]

    def y_percent(self, value: float) -> float:
        """The height of a value, in percent from the top."""
        return round(self._y(value) / 10, 2)

    def points(self) -> dict[str, Any]:
        """The numbers that the page's script shows under the pointer; None where a value is missing."""
        curves = [
            {
                "name": curve.name,
                "x": [round(x, 1) for x in curve.x.tolist()],
                "y": [_short(y) for y in curve.mean],
                "top": [None if math.isnan(y) else round(self._y(y) / 10, 2) for y in curve.mean],
                **({"low": [*map(_short, curve.low)], "high": [*map(_short, curve.high)]} if curve.averaged else {}),
            }
            for curve in self.curves
        ]
        return {"unit": self.unit, "last": self.x_axis.high, "percent": self.percent, "curves": curves}

    def _y(self, value: float) -> float:
        if math.isnan(value):
            return math.nan
        axis = self.y_axis
        return 1000 * (1 - min(max(axis.place(max(value, axis.low)), 0.0), 1.0))


def plot_of(
    title: str, curves: Sequence[Curve], last: float, *, within: Sequence[float] = (), log: bool = False, **options: Any
) -> Plot:
    """The plot of some curves from 0 to `last`.

    within: values that the axis has to hold, too. log: whether it may be logarithmic. options: of `Plot`.
    """
    values = [y for curve in curves for ys in (curve.low, curve.high) for y in ys.tolist() if math.isfinite(y)]
    return Plot(title, curves, step_axis(last), value_axis([*values, *within], may_be_log=log), **options)


def _segments(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A path with a gap at each NaN. A point between two gaps is a dot."""
    words: list[str] = []
    open_line = False
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if math.isnan(y):
            open_line = False
            continue
        words.append(f"{'L' if open_line else 'M'}{x:.1f},{y:.1f}")
        alone = not open_line and (i + 1 == len(ys) or math.isnan(ys[i + 1]))
        if alone:
            words.append("h0")
        open_line = True
    return "".join(words)


def _short(value: float) -> float | None:
    """Five significant digits, or None for what is not finite."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
