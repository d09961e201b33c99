"""The axes of a plot: their range, their ticks, and the numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_FROM = 20.0
"""An axis that may be logarithmic is so from this ratio of the greatest to the least value on."""


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, and the ticks between them."""

    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def place(self, value: float) -> float:
        """The place of a value: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def labels(self) -> list[tuple[float, str]]:
        """The place of each tick, and its number in as many digits as tell it from the others."""
        size = None if self.log else max(map(abs, self.ticks), default=None)
        texts: list[str] = []
        for digits in range(4, 17):
            texts = [short_text(tick, size, digits) for tick in self.ticks]
            if len(set(texts)) == len(texts):
                break
        return [(self.place(tick), text) for tick, text in zip(self.ticks, texts, strict=True)]


def linear_axis(low: float, high: float, ticks: int = 4) -> Axis:
    """An axis from a tick at or below `low` to one at or above `high`, with about so many steps between ticks."""
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:  # equal, but for rounding
        margin = size / 2 or 1.0
        low, high = low - margin, high + margin
    step = _round_step((high - low) / ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    places = [i * step for i in range(first, last + 1)]
    return Axis(places[0], places[-1], places)


def step_axis(last: float, ticks: int = 5) -> Axis:
    """An axis from 0 to exactly `last`, for steps and images."""
    last = max(last, 1.0)
    step = max(_round_step(last / ticks), 1.0)
    return Axis(0.0, last, [i * step for i in range(int(last // step) + 1)])


def value_axis(values: Sequence[float], *, may_be_log: bool) -> Axis:
    """An axis for these finite values: logarithmic where it may be, and they span more than a decade."""
    low, high = (float(min(values)), float(max(values))) if values else (0.0, 1.0)
    if may_be_log and low > 0 and high / low >= _LOG_FROM:
        low, high = low / 1.1, high * 1.1
        return Axis(low, high, _log_ticks(low, high), log=True)
    return linear_axis(low, high)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; also their double and fivefold where the powers are few, and not every one where they are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first + 1) / 7)
    powers = [10.0**power for power in range(first, last + 1, every)]
    ticks = [tick for tick in powers if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [part * power for power in powers for part in (1, 2, 5) if low <= part * power <= high]
    return ticks


def short_text(value: float, size: float | None = None, digits: int = 4) -> str:
    """A number in few characters: 0.05, 200k, 1.5M, 1e−5. size: of the numbers that stand beside it."""
    if value == 0:
        return "0"
    if abs(value) < 1e13:
        for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= unit:
                return f"{value / unit:.{digits}g}{letter}".replace("-", "−")
    if abs(value) >= 1e13 or (abs(value) if size is None else size) < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 2}e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, the smallest that is at least this."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= least * (1 - 1e-9))
