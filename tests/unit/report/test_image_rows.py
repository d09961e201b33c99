"""The image grid of a comparison."""

from __future__ import annotations

import torch

from diffpipe.report.image_rows import ImageRow, images_per_row, row_image, stack_rows


def test_the_grid_has_a_row_per_run_and_small_images_are_enlarged() -> None:
    assert (images_per_row(10), images_per_row(0), images_per_row(3), images_per_row(30), images_per_row(1000)) == (
        20,
        20,
        18,
        30,
        20,
    )
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[1, 0] = 255
    row = row_image(images)
    assert row.size == (4 * 56 + 3 * 2, 56)
    assert row.getpixel((60, 5)) == (255, 0, 0, 255)
    assert row.getpixel((57, 5)) == (0, 0, 0, 0)
    one, two = (stack_rows([ImageRow("name", "note", images)] * k, ["0", "1", "0", "1"]) for k in (1, 2))
    assert two.height - one.height == 56 + 6
    assert one.width > row.width
    assert row_image(torch.zeros(2, 1, 256, 256, dtype=torch.uint8)).height == 112
