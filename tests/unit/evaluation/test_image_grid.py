"""Image grids and PNG files: where each image lies, and that its pixels come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffpipe.evaluation.image_grid import grid, save_pngs
from diffpipe.rng import KeyedRNG


def random_images(n: int, channels: int, size: int) -> torch.Tensor:
    return (256 * KeyedRNG(0, torch.arange(n)).uniform("pixels", (channels, size, size))).to(torch.uint8)


def test_a_grid_lies_row_by_row_with_white_borders_and_white_empty_cells() -> None:
    images = random_images(5, 3, 64)
    picture = np.asarray(grid(images, columns=3))
    assert picture.shape == (2 * 66, 3 * 66, 3)
    cells = picture.reshape(2, 66, 3, 66, 3).transpose(0, 2, 1, 3, 4).reshape(6, 66, 66, 3)
    np.testing.assert_array_equal(cells[:5, 1:-1, 1:-1], images.permute(0, 2, 3, 1).numpy())
    assert (cells[:, [0, -1]] == 255).all()
    assert (cells[:, :, [0, -1]] == 255).all()
    assert (cells[5] == 255).all()


def test_small_images_are_enlarged_by_an_integer_factor() -> None:
    picture = np.asarray(grid(random_images(4, 1, 8)))
    assert picture.shape == (160, 160)  # two cells of 8 + 2 pixels, eight times as large
    np.testing.assert_array_equal(picture, np.kron(picture[::8, ::8], np.ones((8, 8), np.uint8)))


def test_a_png_is_named_by_the_index_and_holds_the_pixels(tmp_path: Path) -> None:
    images = random_images(2, 1, 8)
    save_pngs(images, range(7, 9), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000007.png", "000008.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000008.png")), images[1, 0].numpy())
