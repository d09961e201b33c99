"""The grid of the most and the least anomalous images, read back pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch

from diffpipe.report.anomaly_grid import FRAME, most_and_least_anomalous
from diffpipe.report.labelled_grid import LINE


def test_rows_are_sorted_by_score_and_frames_show_the_set() -> None:
    values = {"normal": [3.0, 1.0], "abnormal": [2.0, 9.0]}
    greys = {"normal": [10, 20], "abnormal": [30, 40]}
    pixels = {
        name: torch.tensor(grey, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 64, 64)
        for name, grey in greys.items()
    }
    scores = {
        name: {"exact": np.array(v), "typicality": -np.array(v)}  # the second one has the opposite order
        for name, v in values.items()
    }
    picture = np.asarray(most_and_least_anomalous(scores, pixels))
    cell = 64 + 2 * 2 + 2
    left = (picture[2 * LINE + 3] != 255).any(1).nonzero()[0][-1] + 2 - 4 * cell
    names = {grey: name for name, several in greys.items() for grey in several}
    for row, order in enumerate([[40, 10, 30, 20], [20, 30, 10, 40], [20, 30, 10, 40], [40, 10, 30, 20]]):
        for column, grey in enumerate(order):
            image = picture[2 * LINE + row * cell :, left + column * cell :][1 : cell - 1, 1 : cell - 1]
            assert (image[2:-2, 2:-2] == grey).all()
            assert (image[[0, 1, -1, -2]] == FRAME[names[grey]]).all()


def test_at_most_sixteen_images_are_in_a_row() -> None:
    pixels = {name: torch.zeros(20, 3, 64, 64, dtype=torch.uint8) for name in ("normal", "abnormal")}
    scores = {name: {"exact": np.arange(20.0)} for name in pixels}
    few = {name: {"exact": np.arange(8.0)} for name in pixels}
    picture = most_and_least_anomalous(scores, pixels)
    assert picture.size == most_and_least_anomalous(few, {name: p[:8] for name, p in pixels.items()}).size
