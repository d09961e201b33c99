"""Labelled grids: every image at its place, in whole pixels."""

from __future__ import annotations

import numpy as np
import torch

from diffpipe.report.labelled_grid import LINE, labelled_grid


def test_each_image_is_at_its_row_and_column_enlarged_to_64_pixels() -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 28, 28).contiguous() * 40
    pixels = np.asarray(labelled_grid(images, ["a", "b", "c"], "t"))
    cell = 3 * 28 + 2  # the least whole factor that makes 28 pixels 64 or more, and a white line on each side
    assert pixels.shape == (2 * LINE + 2 * cell, 3 * cell, 3)
    for i in range(6):
        top, left = 2 * LINE + i // 3 * cell, i % 3 * cell
        assert (pixels[top + 1 : top + cell - 1, left + 1 : left + cell - 1] == 40 * i).all()
        assert (pixels[top, left : left + cell] == 255).all()


def test_room_is_made_for_long_titles_and_for_labels_of_rows() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    plain = labelled_grid(images, ["1"], "t")
    assert labelled_grid(images, ["1"], "a long title " * 9).width > 3 * plain.width
    labelled = labelled_grid(images, ["1"], "t", rows=["first row", "second"])
    assert labelled.height == plain.height
    ink = np.asarray(labelled.convert("L"))[2 * LINE :, : labelled.width - plain.width] < 128
    assert ink[:66].any()
    assert ink[66:].any()
