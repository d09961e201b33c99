"""The grid of images between two ends: one row per pair, in order."""

from __future__ import annotations

import numpy as np
import torch

from diffpipe.evaluation.interpolation import Interpolation
from diffpipe.report.interpolation_grid import interpolation_grid
from diffpipe.report.labelled_grid import LINE


def test_a_row_of_cells_is_a_row_of_the_interpolation() -> None:
    images = torch.tensor([[10, 20, 30], [40, 50, 60]], dtype=torch.uint8)[:, :, None, None, None]
    interpolation = Interpolation(images.expand(-1, -1, 1, 8, 8), ["0", "0.5", "1"], "two noises")
    picture = np.asarray(interpolation_grid(interpolation, "ddpm, step 2").convert("L"))
    cell = 8 * 8 + 2
    assert picture.shape[0] == 2 * LINE + 2 * cell
    left = (picture.shape[1] - 3 * cell) // 2
    centres = picture[2 * LINE + cell // 2 :: cell, left + cell // 2 :: cell][:2, :3]
    assert centres.tolist() == [[10, 20, 30], [40, 50, 60]]
