"""The grid of reverse chains: for each image x_t, and beneath it the predicted x_0."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffpipe.evaluation.trajectory import Trajectory
from diffpipe.report.labelled_grid import LINE
from diffpipe.report.trajectory_grid import trajectory_grid


def flat(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.uint8)[:, :, None, None, None].expand(-1, -1, 1, 8, 8)


def test_each_image_has_a_row_of_x_t_above_a_row_of_x0() -> None:
    x_t, x0 = flat([10, 20, 30], [40, 50, 60]), flat([110, 120, 130], [140, 150, 160])
    trajectory = Trajectory(x_t, x0, [math.inf, 1.5, 0.0], ["0", "1, Bag"], "ddim, 50 steps")
    picture = np.asarray(trajectory_grid(trajectory, "ddpm, step 2").convert("L"))
    cell = 8 * 8 + 2
    assert picture.shape[0] == 2 * LINE + 4 * cell
    centres = picture[2 * LINE + cell // 2 :: cell]
    rows = [[value for value in row[:: cell // 2].tolist() if value % 10 == 0 and 0 < value < 200] for row in centres]
    for row, values in zip(rows, ([10, 20, 30], [110, 120, 130], [40, 50, 60], [140, 150, 160]), strict=True):
        assert [v for v in dict.fromkeys(row) if v in values] == values
