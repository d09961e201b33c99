"""Strips are cropped before they are enlarged: to the bits of the enlarged whole, in a small part of its memory."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.decode import decode, decode_to, fit, image, strip
from diffpipe.data.decode.strip import is_strip, strip_window
from diffpipe.resolution import Resolution, square
from tests.support.tars import png, random_pixels

WORDS = [None, *(np.array([word, word, 0]) for word in (0, 2**31 + 5, 2**32 - 1))]


@pytest.mark.parametrize(
    ("height", "width", "resolution"),
    [
        (1, 9000, square(64)),
        (9000, 1, square(64)),
        (1, 4001, square(37)),
        (2, 5000, square(63)),
        (3, 6000, square(64)),
        (6000, 3, square(64)),
        (5, 3000, square(96)),
        (1, 9000, Resolution(48, 64)),
        (9000, 1, Resolution(48, 64)),
        (3, 6000, Resolution(64, 31)),
        (6000, 3, Resolution(21, 64)),
    ],
)
def test_the_bits_are_those_of_the_enlarged_whole(
    height: int, width: int, resolution: Resolution, monkeypatch: pytest.MonkeyPatch
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
    assert decode_to(data, 1, "x", square(256)).shape == (1, 256, 256)
    assert fit(decode(data, 1, "x"), square(256)).size == (256, 256)
    assert len(sizes) == 2
    assert all(w * h < 1 << 20 for w, h in sizes)


@pytest.mark.parametrize(
    ("width", "height", "resolution"),
    [
        (64, 64, square(256)),
        (200, 300, square(256)),
        (60, 6000, square(64)),
        (6000, 1200, square(1024)),
        (800, 60000, square(512)),
        (20, 1200, square(64)),
        (1, 1, square(4096)),
        (1, 64, Resolution(4096, 64)),
    ],
)
def test_images_that_people_have_are_resized_whole(width: int, height: int, resolution: Resolution) -> None:
    assert not is_strip(width, height, resolution)


@pytest.mark.parametrize(
    ("long", "short", "side", "kept"), [(6001, 3, 64, 64), (9001, 7, 96, 96), (4001, 60, 64, 64), (6001, 3, 64, 17)]
)
def test_the_window_holds_the_kept_part_at_each_end(long: int, short: int, side: int, kept: int) -> None:
    whole = round(long * side / short)
    for start in (0, 1, whole // 2, whole - kept):
        window = strip_window(long, short, side, kept, start)
        assert 0 <= window.begin < window.end <= long
        assert 0 <= window.offset <= window.size - kept
        assert abs(window.begin * side / short + window.offset - start) < 1
