"""Images and labels for evaluation: in order and without randomness."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import images, labels, load
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from diffpipe.resolution import square
from tests.support.tars import png, random_pixels, write_shards, write_tar


def test_images_for_evaluation_are_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path, [13, 1, 30, 7], size=(10, 12))
    write_index(tmp_path)
    shards = load(str(tmp_path))
    indices = [50, 0, 13, 12]
    expected = np.stack([random_pixels(i, (10, 12))[None] for i in indices])
    assert np.array_equal(images(shards, indices, None, 1).numpy(), expected)
    assert np.array_equal(images(shards, indices, square(10), 1).numpy(), expected[..., 1:11])
    assert images(shards, range(3), square(4), 3).shape == (3, 3, 4, 4)
    assert labels(shards, indices).tolist() == [i % 3 for i in indices]


def test_images_of_several_sizes_need_a_resolution(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "WEBP")
    write_tar(tmp_path / "0.tar", {"a.png": png(random_pixels(0)), "b.webp": buffer.getvalue()})
    write_index(tmp_path)
    shards = load(str(tmp_path))
    with pytest.raises(UserError, match=r"b: .*pack them with --resolution"):
        images(shards, [0, 1], None, 1)
    assert images(shards, [0, 1], square(8), 1).shape == (2, 1, 8, 8)
