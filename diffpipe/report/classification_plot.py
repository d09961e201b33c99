"""The confusion matrix and the reliability of a classification, as a plot."""

from __future__ import annotations

import numpy as np

from diffpipe.evaluation.classification import Classification
from diffpipe.extras import from_extra
from diffpipe.metrics.calibration import Reliability

with from_extra("report"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED = 30  # more classes are neither named nor counted in the plot: there is no room


def plot_classification(result: Classification, names: list[str], title: str) -> Figure:
    """The confusion matrix, as shares of each true class, and the reliability of the raw and the tempered posterior.

    title: the run's.
    """
    k = len(names)
    figure = Figure(figsize=(11, 6.4), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[2, 1])
    matrix = figure.add_subplot(grid[:, 0])
    shares = result.confusion / result.confusion.sum(dim=1, keepdim=True).clamp(min=1)
    matrix.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    matrix.set(xlabel="predicted class", ylabel="true class", title="confusion: images, shaded by share of the row")
    if k <= MAX_NAMED:
        matrix.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        matrix.set_yticks(range(k), names)
        for true, predicted in result.confusion.nonzero().tolist():
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            count = int(result.confusion[true, predicted])
            matrix.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=120 / (k + 8))
    panels = {"raw posterior": result.raw, f"at temperature {result.temperature:.3g}": result.tempered}
    for row, (name, calibration) in enumerate(panels.items()):
        _reliability(figure.add_subplot(grid[row, 1]), calibration.reliability, name)
    low, high = result.interval
    figure.suptitle(f"{title}: accuracy {result.right / result.n:.3f} ({low:.3f} to {high:.3f})")
    return figure


def _reliability(axes: Axes, reliability: Reliability, name: str) -> None:
    count, confidence, accuracy = (column.numpy() for column in reliability)
    non_empty, left, width = count > 0, np.arange(len(count)) / len(count), 1 / len(count)
    axes.bar(left[non_empty], accuracy[non_empty], width, align="edge", edgecolor="white")
    axes.plot(confidence[non_empty], accuracy[non_empty], ".", color="black", markersize=4)
    axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    axes.bar(left, count / count.sum(), width, align="edge", fill=False, edgecolor="tab:orange")
    axes.text(0.03, 0.93, "share of images", color="tab:orange", fontsize=8, va="top")
    axes.text(0.03, 0.84, "accuracy in the bin", color="tab:blue", fontsize=8, va="top")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability of the predicted class")
    axes.set_title(f"{name}: ECE {reliability.error:.3f}", fontsize=10)
