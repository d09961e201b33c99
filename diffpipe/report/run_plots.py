"""The plots of a run: which values of metrics.jsonl are drawn together, and the scores over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffpipe.metrics.names import shown_name
from diffpipe.plural import plural
from diffpipe.report.curve import Curve, Plot, curve_of, plot_of
from diffpipe.report.metrics_log import MetricsLog
from diffpipe.report.run_scores import ScoreSeries

_NOISE_LEVELS = {
    "loss_q1": "least noise",
    "loss_q2": "second quarter",
    "loss_q3": "third quarter",
    "loss_q4": "most noise",
}
_NOT_PLOTTED = {"step", "images", "epoch", "time", "minutes", "last_step", "skipped", "bad"}
_MOST_OTHERS = 16
MOST_CURVES = 6
"""As many colours as there are."""


def metric_plots(log: MetricsLog, last: float) -> list[Plot]:
    """The plots in the order in which people look at them. Those without values are left out."""
    keys = [key for key in log.columns if key not in _NOT_PLOTTED]
    phases = [key.rpartition("/")[0] for key in keys if key.endswith("/loss")]
    taken: set[str] = set()

    def plot(title: str, names: dict[str, str], **options: Any) -> list[Plot]:
        present = {key: name for key, name in names.items() if key in keys}
        taken.update(present)
        curves = [curve_of(name, log.columns[key]) for key, name in [*present.items()][:MOST_CURVES]]
        return [plot_of(title, curves, last, note=_note(curves), **options)] if curves else []

    total = "loss" if not phases else "sum of the phases"
    losses = {"loss": total, **{f"{phase}/loss": phase for phase in phases}, "validation_loss": "validation"}
    losses |= {f"{phase}/validation_loss": f"{phase}, validation" for phase in phases}
    plots = plot("Loss", losses, log=True)
    plots += plot("Loss by noise level", _NOISE_LEVELS, log=True)
    for prefix, of in {"validation_": "validation", **{f"{phase}/": phase for phase in phases}}.items():
        names = {f"{prefix}{key}": name for key, name in _NOISE_LEVELS.items()}
        plots += plot(f"Loss by noise level, {of}", names, log=True)
    norms = {"grad_norm": "gradient norm", **{f"{phase}/grad_norm": phase for phase in phases}}
    plots += plot("Gradient norm before clipping", norms, log=True)
    plots += plot("Images per second", {"images_per_second": "images/s"}, within=[0.0])
    plots += plot("Time spent waiting for data", {"data_wait": "data wait"}, within=[0.0, 1.0], percent=True)
    plots += plot("Learning rate", {"lr": "learning rate"}, within=[0.0])
    others = [key for key in keys if key not in taken]
    for key in others[:_MOST_OTHERS]:
        plots += plot(key, {key: key}, log=True)
    return plots


def score_plots(series: Sequence[ScoreSeries]) -> list[Plot]:
    """A plot per metric that was measured twice: a curve for each set of scores that may be compared, over images."""
    plots = []
    last = max((point.images for one in series for point in one.points), default=0.0)
    for metric in dict.fromkeys(one.metric for one in series if len(one.points) > 1):
        shown = [one for one in series if one.metric == metric][:MOST_CURVES]
        curves = [one.curve() for one in shown]
        floors = {one.floor for one in shown}
        floor = floors.pop() if len(floors) == 1 else None
        within = [] if floor is None else [floor]
        line = None if floor is None else ("real images", floor)
        plots.append(plot_of(shown_name(metric), curves, last, within=within, unit="image", floor=line))
    return plots


def log_notes(log: MetricsLog, plots: Sequence[Plot]) -> list[str]:
    """Sentences on what the plots do not show of a log."""
    notes = []
    lines = max((curve.lines for plot in plots for curve in plot.curves), default=1)
    if log.share < 1:
        notes.append(f"The log is large: of its lines, {log.lines:,} are read, one in {1 / log.share:,.0f}.")
    if lines > 1:
        read = f"The log has {log.lines:,} lines. " if log.share == 1 else ""
        notes.append(
            f"{read}Each point is the mean of up to {lines:,} of them, and the pale band "
            "reaches from the least to the greatest."
        )
    left_out = len(log.columns.keys() - _NOT_PLOTTED) - sum(len(plot.curves) for plot in plots)
    if left_out:
        notes.append(f"{plural(left_out, 'more value of the log is', 'more values of the log are')} not shown.")
    if log.damaged:
        notes.append(f"{plural(log.damaged, 'damaged line is', 'damaged lines are')} left out.")
    return notes


def _note(curves: Sequence[Curve]) -> str:
    bad = sum(curve.nonfinite_count for curve in curves)
    return f"× marks {plural(f'{bad:,}', 'value that is', 'values that are')} not finite." if bad else ""
