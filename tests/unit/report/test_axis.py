"""The axes of plots: ticks are round, within the axis, and few."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.report.axis import linear_axis, short_text, step_axis, value_axis

NUMBERS = st.floats(-1e12, 1e12).map(lambda x: float(f"{x:.6g}"))


@given(low=NUMBERS, high=NUMBERS)
def test_a_linear_axis_holds_its_values_between_few_round_ticks(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    axis = linear_axis(low, high)
    size = max(abs(axis.low), abs(axis.high))
    assert axis.low <= low + 1e-6 * size
    assert axis.high >= high - 1e-6 * size
    assert 2 <= len(axis.ticks) <= 8
    assert [axis.place(tick) for tick in axis.ticks] == sorted(axis.place(tick) for tick in axis.ticks)
    assert (axis.place(axis.low), axis.place(axis.high)) == (0, 1)
    assert len({text for _, text in axis.labels}) == len(axis.ticks)


@given(st.integers(0, 10**12))
def test_the_axis_of_steps_ends_with_the_last_step_and_has_whole_ticks(last: int) -> None:
    axis = step_axis(float(last))
    assert axis.high == max(last, 1)
    assert 2 <= len(axis.ticks) <= 7
    assert all(tick == int(tick) for tick in axis.ticks)
    assert max(axis.ticks) <= axis.high


@given(st.floats(1e-9, 1e9), st.floats(21, 1e9))
def test_a_logarithmic_axis_has_ticks_of_powers_of_ten(low: float, ratio: float) -> None:
    axis = value_axis([low, low * ratio], may_be_log=True)
    assert axis.log
    assert 1 <= len(axis.ticks) <= 9
    assert 0 < axis.place(low) < axis.place(low * ratio) < 1
    for tick in axis.ticks:
        digits = tick / 10 ** math.floor(math.log10(tick) + 1e-9)
        assert min(abs(digits - round_one) for round_one in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize("values", [[], [0.0], [0.0, 100.0], [-1.0, 100.0], [3.0, 3.0], [1.0, 19.0]])
def test_other_values_have_a_linear_axis(values: list[float]) -> None:
    axis = value_axis(values, may_be_log=True)
    assert not axis.log
    assert all(0 <= axis.place(value) <= 1 for value in values)


def test_numbers_are_short() -> None:
    values = [0.0, 0.05, 2e5, 1.5e6, 1e-5, -0.25, 2e9, 3e-12, 0.002]
    assert [*map(short_text, values)] == ["0", "0.05", "200k", "1.5M", "1e−5", "−0.25", "2G", "3e−12", "0.002"]


def test_ticks_that_lie_close_together_have_the_digits_that_tell_them_apart() -> None:
    assert [text for _, text in linear_axis(1540.2, 1540.26).labels] == ["1.5402k", "1.54022k", "1.54024k", "1.54026k"]
    assert [text for _, text in linear_axis(0.0, 0.3).labels] == ["0", "0.1", "0.2", "0.3"]


def test_the_ticks_of_one_axis_are_written_alike() -> None:
    assert [text for _, text in linear_axis(0.0, 0.002).labels] == ["0", "0.0005", "0.001", "0.0015", "0.002"]
    assert [text for _, text in linear_axis(0.0, 2e-4).labels] == ["0", "5e−5", "1e−4", "1.5e−4", "2e−4"]
