"""Curves with few points: each the mean of a stretch, with its least and its greatest value, and gaps where none is."""

from __future__ import annotations

import math
import re

import numpy as np

from diffpipe.report.curve import curve_of, plot_of
from diffpipe.report.metrics_log import Column


def column(values: list[float] | np.ndarray, first: int = 1) -> Column:
    return Column(np.arange(first, first + len(values), dtype=float), np.array(values, dtype=float))


def test_a_short_column_is_drawn_as_it_is() -> None:
    curve = curve_of("loss", column([3.0, math.nan, 1.0, math.inf]))
    assert curve.x.tolist() == [1, 2, 3, 4]
    assert curve.mean.tolist()[::2] == [3.0, 1.0]
    assert np.isnan(curve.mean[1::2]).all()
    assert (curve.nonfinite, curve.nonfinite_count, curve.last, curve.averaged) == ([2.0, 4.0], 2, None, False)


def test_a_million_values_become_means_that_keep_every_extreme() -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[123_456], values[654_321] = 50.0, -60.0
    curve = curve_of("loss", column(values), most=400)
    assert len(curve.x) == 400
    assert (curve.high.max(), curve.low.min(), curve.lines) == (50.0, -60.0, 2500)
    stretches = values.reshape(400, 2500)
    np.testing.assert_allclose(curve.mean, stretches.mean(1), atol=1e-9)
    np.testing.assert_array_equal(curve.low, stretches.min(1))
    np.testing.assert_array_equal(curve.high, stretches.max(1))


def test_a_stretch_without_finite_values_is_a_gap_and_others_leave_nan_out() -> None:
    values = np.ones(4000)
    values[1000:1100] = math.nan
    values[2005] = math.inf
    curve = curve_of("loss", column(values), most=400)
    assert np.isnan(curve.mean).sum() == 10
    assert curve.mean[np.isfinite(curve.mean)].tolist() == [1.0] * 390
    assert curve.nonfinite_count == 101
    assert len(curve.nonfinite) == 60


def test_steps_at_unequal_distances_fall_into_stretches_of_equal_length() -> None:
    steps = np.concatenate([np.arange(1000), [1e6]]).astype(float)
    curve = curve_of("loss", Column(steps, np.ones(1001)), most=400)
    assert len(curve.x) == 2
    assert curve.lines == 1000


def test_the_path_has_a_gap_at_nan_and_a_dot_for_a_point_between_two_gaps() -> None:
    plot = plot_of("Loss", [curve_of("loss", column([0.0, 1.0, math.nan, 1.0, math.nan, 0.0, 0.0]))], 7.0)
    path = plot.paths(plot.curves[0])
    assert path["dots"].count("h0") == 5
    assert re.sub(r"[0-9.,]+", "", path["line"].replace("h0", "h")) == "MLMhML"
    assert path["band"] == ""
    assert [entry is None for entry in plot.points()["curves"][0]["y"]] == [
        False,
        False,
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_plot_without_a_finite_value_is_drawn_all_the_same() -> None:
    plot = plot_of("Loss", [curve_of("loss", column([math.nan, math.inf]))], 2.0, log=True)
    assert plot.paths(plot.curves[0])["line"] == ""
    assert plot.description == "Loss: no finite value"
    assert len(plot.mark_places(plot.curves[0])) == 2


def test_a_plot_tells_its_ends_in_words() -> None:
    plot = plot_of("Waiting", [curve_of("data wait", column([0.5, 0.25]))], 2.0, within=[0.0, 1.0], percent=True)
    assert plot.description == "Waiting: data wait from 50% to 25%"
    assert [text for _, text in plot.y_labels] == ["0%", "50%", "100%"]
