"""The plots of a run: what belongs together is drawn together, and nothing is drawn twice."""

from __future__ import annotations

import math
from pathlib import Path

from diffpipe.report.metrics_log import read_metrics
from diffpipe.report.run_plots import log_notes, metric_plots, score_plots
from diffpipe.report.run_scores import read_scores, series_of
from tests.support.report_runs import finished_run, log_line, write_lines


def test_a_diffusion_has_its_losses_rates_and_scores(tmp_path: Path) -> None:
    home = finished_run(tmp_path / "run")
    log = read_metrics(home / "metrics.jsonl")
    plots = metric_plots(log, 1000.0)
    assert [(plot.title, [curve.name for curve in plot.curves]) for plot in plots] == [
        ("Loss", ["loss", "validation"]),
        ("Loss by noise level", ["least noise", "second quarter", "third quarter", "most noise"]),
        ("Gradient norm before clipping", ["gradient norm"]),
        ("Images per second", ["images/s"]),
        ("Time spent waiting for data", ["data wait"]),
        ("Learning rate", ["learning rate"]),
    ]
    assert log_notes(log, plots) == []
    assert plots[0].y_axis.log
    assert plots[3].y_axis.low == 0
    assert (plots[4].y_axis.low, plots[4].y_axis.high) == (0, 1)
    (scores,) = score_plots(series_of(read_scores(home / "scores").files))
    assert [(curve.name, curve.mean.tolist()) for curve in scores.curves] == [
        ("protocol A", [300.0, 250.0]),
        ("protocol B", [400.0]),
    ]
    assert (scores.x_axis.high, scores.floor) == (16_000, ("real images", 120.0))


def test_the_phases_of_a_gan_are_curves_of_one_plot(tmp_path: Path) -> None:
    values = {"generator/loss": 1.0, "discriminator/loss": 2.0, "generator/grad_norm": 3.0, "discriminator/real": 0.5}
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 3.0, **values}])
    plots = metric_plots(read_metrics(tmp_path / "metrics.jsonl"), 1.0)
    assert [(plot.title, [curve.name for curve in plot.curves]) for plot in plots] == [
        ("Loss", ["sum of the phases", "generator", "discriminator"]),
        ("Gradient norm before clipping", ["generator"]),
        ("discriminator/real", ["discriminator/real"]),
    ]


def test_notes_say_what_was_averaged_what_is_not_finite_and_what_is_left_out(tmp_path: Path) -> None:
    lines = [log_line(step) | ({"loss": math.nan} if step == 500 else {}) for step in range(1, 4001)]
    write_lines(tmp_path / "metrics.jsonl", lines)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    log = read_metrics(tmp_path / "metrics.jsonl")
    plots = metric_plots(log, 4000.0)
    assert plots[0].note == "× marks 1 value that is not finite."
    averaged, damaged = log_notes(log, plots)
    assert averaged.startswith("The log has 4,000 lines. Each point is the mean of up to 10 of them, and the pale band")
    assert damaged == "1 damaged line is left out."


def test_a_hundred_other_values_are_bounded_and_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, **{f"x{i}": 1.0 for i in range(100)}}])
    log = read_metrics(tmp_path / "metrics.jsonl")
    plots = metric_plots(log, 1.0)
    assert len(plots) == 16
    assert log_notes(log, plots) == ["84 more values of the log are not shown."]
    assert metric_plots(read_metrics(tmp_path / "absent"), 1.0) == []
