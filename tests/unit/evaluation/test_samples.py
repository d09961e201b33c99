"""Generated images as files: one PNG for each, by its index, and a grid with a column for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.samples import write_samples
from diffpipe.interfaces import ImageShape
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("classes", "n"), [(0, 5), (3, 110)])
def test_each_image_is_a_file_by_its_index_and_the_first_hundred_are_a_grid(
    classes: int, n: int, tmp_path: Path, runtime: Runtime
) -> None:
    source = GeneratedImages(Noise(), {}, ImageShape(1, 8, classes), runtime, n=n, seed=0)
    write_samples(source, tmp_path / "some" / "out", runtime)
    images = source.images(range(n))
    files = sorted((tmp_path / "some" / "out").glob("0*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(n)]
    assert np.array_equal(np.stack([pixels(file) for file in files]), images[:, 0].numpy())
    expected = np.asarray(grid(images[:100], columns=classes or None))
    assert np.array_equal(pixels(tmp_path / "some" / "out" / "grid.png"), expected)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "out").touch()
    source = GeneratedImages(Noise(), {}, ImageShape(1, 8), runtime, n=2, seed=0)
    with pytest.raises(UserError, match="give a folder that can be written"):
        write_samples(source, tmp_path / "out", runtime)
