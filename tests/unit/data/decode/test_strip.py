"""Strips are cropped before they are enlarged: to the bits of the enlarged whole, in a small part of its memory."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.decode import decode, decode_to, fit, image, strip
from diffpipe.data.decode.strip import is_strip, strip_window
from tests.support.tars import png, random_pixels

WORDS = [None, *(np.array([word, word, 0]) for word in (0, 2**31 + 5, 2**32 - 1))]


@pytest.mark.parametrize(
    ("height", "width", "resolution"),
    [(1, 9000, 64), (9000, 1, 64), (1, 4001, 37), (2, 5000, 63), (3, 6000, 64), (6000, 3, 64), (5, 3000, 96)],
)
def test_the_bits_are_those_of_the_enlarged_whole(
    height: int, width: int, resolution: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(random_pixels(width, (height, width, 3)))

    def squares() -> list[np.ndarray]:
        crops = [
            decode_to(data, 3, "x", resolution, "random" if words is not None else "center", words=words)
            for words in WORDS
        ]
        return [*crops, np.asarray(fit(decode(data, 3, "x"), resolution))]

    monkeypatch.setattr(strip, "_PIXELS", 1)
    assert is_strip(width, height, resolution)
    windows = squares()
    monkeypatch.setattr(strip, "_PIXELS", 1 << 60)
    assert not is_strip(width, height, resolution)
    assert all(map(np.array_equal, windows, squares()))


@pytest.mark.parametrize(("height", "width"), [(65535, 1), (1, 65535), (20000, 1), (3, 65533), (65533, 7)])
def test_no_image_is_enlarged_to_much_more_than_is_kept(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 x 65535 at 256 would be 4.3 billion pixels."""
    sizes: list[tuple[int, int]] = []
    resized, resize = image._resized, Image.Image.resize
    monkeypatch.setattr(image, "_resized", lambda array, size: sizes.append(size) or resized(array, size))
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *how: sizes.append(size) or resize(self, size, *how))
    data = png(np.zeros((height, width), np.uint8))
    assert decode_to(data, 1, "x", 256).shape == (1, 256, 256)
    assert fit(decode(data, 1, "x"), 256).size == (256, 256)
    assert len(sizes) == 2
    assert all(w * h < 1 << 20 for w, h in sizes)


@pytest.mark.parametrize(
    ("width", "height", "resolution"),
    [
        (64, 64, 256),
        (200, 300, 256),
        (60, 6000, 64),
        (6000, 1200, 1024),
        (800, 60000, 512),
        (20, 1200, 64),
        (1, 1, 4096),
    ],
)
def test_images_that_people_have_are_resized_whole(width: int, height: int, resolution: int) -> None:
    assert not is_strip(width, height, resolution)


@pytest.mark.parametrize(("long", "short", "resolution"), [(6001, 3, 64), (9001, 7, 96), (4001, 60, 64)])
def test_the_window_holds_the_square_at_each_end(long: int, short: int, resolution: int) -> None:
    whole = round(long * resolution / short)
    for start in (0, 1, whole // 2, whole - resolution):
        window = strip_window(long, short, resolution, start)
        assert 0 <= window.begin < window.end <= long
        assert 0 <= window.offset <= window.size - resolution
        assert abs(window.begin * resolution / short + window.offset - start) < 1
