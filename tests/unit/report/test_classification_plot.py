"""The plot of a classification: counts in the cells, shares as shades, bars of the reliability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from diffpipe.evaluation.classification import Calibration, Classification
from diffpipe.metrics.calibration import reliability
from diffpipe.report.classification_plot import MAX_NAMED, plot_classification


def classification(k: int) -> Classification:
    p = torch.full((4, k), 0.2 / (k - 1), dtype=torch.float64)
    p[:, 0] = 0.8
    calibration = Calibration(0.5, reliability(p, torch.tensor([0, 0, 0, 1])))
    confusion = torch.zeros(k, k, dtype=torch.int64)
    confusion[0, :2] = torch.tensor([3, 1])
    confusion[1, 1] = 6
    return Classification(confusion, 2.5, calibration, calibration)


def test_cells_hold_counts_and_are_shaded_by_the_share_of_the_true_class() -> None:
    figure = plot_classification(classification(3), ["cat", "dog", "owl"], "title")
    matrix, raw, tempered = figure.axes
    shades = np.asarray(matrix.get_images()[0].get_array())
    assert shades == pytest.approx(np.array([[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]))
    counts = {text.get_position(): text.get_text() for text in matrix.texts}
    assert counts == {(0, 0): "3", (1, 0): "1", (1, 1): "6"}  # x is the predicted class, y the true one
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["cat", "dog", "owl"]
    # The one bin with images, (11/15, 12/15], has 3 of 4 right at a probability of 0.8.
    for axes in (raw, tempered):
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
        assert bars[0].get_height() == 0.75
        assert 0.8 - 1 / 15 - 1e-9 <= bars[0].get_x() <= 0.8
        assert "ECE 0.050" in axes.get_title()
    assert "temperature 2.5" in tempered.get_title()


def test_many_classes_are_neither_named_nor_counted() -> None:
    k = MAX_NAMED + 1
    matrix = plot_classification(classification(k), [str(i) for i in range(k)], "title").axes[0]
    assert len(matrix.texts) == 0
    assert len(matrix.get_yticklabels()) < k
