"""Decoding, resizing and cropping: against PIL, and with the same bits everywhere."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from diffpipe.data.decode import image as image_module
from diffpipe.data.decode.image import decode, decode_to, fit, image_resolution, pixels
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import BadSampleError, UserError
from diffpipe.resolution import Resolution, square
from tests.support.tars import png, random_pixels


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, channels: int) -> np.ndarray:
    return pixels(decode(data, channels, "here")).transpose(1, 2, 0).copy()


def test_grey_and_colour_are_exact() -> None:
    grey, colour = random_pixels(0, (5, 7)), random_pixels(1, (5, 7, 3))
    assert np.array_equal(decoded(png(grey), 1)[..., 0], grey)
    assert np.array_equal(decoded(png(grey), 3), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(decoded(png(colour), 3), colour)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(decoded(png(colour), 1)[..., 0] - luma).max() <= 1


def test_the_resolution_is_that_of_the_decoded_image() -> None:
    image, turned = Image.new("L", (7, 5)), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {}),
        ("JPEG", {"exif": turned}),
        ("WEBP", {"exif": turned}),
    ):
        data = encoded(image, kind, **options)
        assert image_resolution(data) == decode(data, 1, "here").size[::-1]
    assert image_resolution(data) == (7, 5)


def test_sixteen_bits_are_scaled_not_clamped() -> None:
    wide = np.arange(0, 65536, 97, dtype=np.uint16).reshape(26, 26)
    assert np.array_equal(decoded(encoded(Image.fromarray(wide)), 1)[..., 0], np.rint(wide / 257))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_blended_with_white(channels: int) -> None:
    grey, alpha = random_pixels(2, (6, 6)), random_pixels(3, (6, 6))
    over_white = (grey * (alpha / 255) + 255 * (1 - alpha / 255))[..., None]
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    for image in (la, la.convert("RGBA")):
        assert np.abs(decoded(encoded(image), channels) - over_white).max() <= 1


def test_palettes_bilevel_and_transparent_entries() -> None:
    index = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    image = Image.fromarray(index)
    image.putpalette([10, 20, 30, 200, 100, 50])
    colours = np.array([[10, 20, 30], [200, 100, 50]])
    assert np.array_equal(decoded(encoded(image), 3), colours[index])
    colours[1] = 255
    assert np.array_equal(decoded(encoded(image, transparency=1), 3), colours[index])
    assert np.array_equal(decoded(encoded(Image.fromarray(index * 255).convert("1")), 1)[..., 0], index * 255)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, np.rot90),
    ],
)
def test_the_exif_orientation_is_applied(orientation: int, turn) -> None:
    stored = random_pixels(4, (4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(Image.fromarray(stored), exif=exif), 1)[..., 0], turn(stored))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and whose data never comes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 10_000), (100_000, 100_000)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"^here: .*64 megapixels"):
        decode(png_of_size(*size), 3, "here")


@pytest.mark.parametrize(
    "data", [b"", b"no image", png(random_pixels(0, (64, 64)))[:1000], png_of_size(8, 8), png(random_pixels(0))[:30]]
)
def test_an_incomplete_image_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^here: not an image"):
        decode(data, 3, "here")


def test_fit_resizes_with_pil_and_crops_at_the_centre() -> None:
    image = Image.fromarray(random_pixels(0, (12, 12)))
    assert np.array_equal(np.asarray(fit(image, square(12))), random_pixels(0, (12, 12)))
    bars = np.repeat(np.array([0] * 8 + [100] * 16 + [200] * 8, dtype=np.uint8)[None], 16, axis=0)
    assert np.array_equal(np.asarray(fit(Image.fromarray(bars), square(16))), bars[:, 8:24])
    assert fit(Image.new("L", (300, 7)), square(7)).size == (7, 7)
    assert fit(Image.new("RGB", (3, 5)), square(8)).size == (8, 8)
    wide = Image.fromarray(random_pixels(1, (40, 60)))
    assert np.array_equal(
        np.asarray(fit(wide, square(20))), np.asarray(wide.resize((30, 20), Image.Resampling.BICUBIC))[:, 5:25]
    )


def test_an_image_is_resized_to_cover_a_resolution_that_is_not_square() -> None:
    wide = Image.fromarray(random_pixels(1, (40, 60)))
    flat, tall = wide.resize((40, 27), Image.Resampling.BICUBIC), wide.resize((60, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(fit(wide, Resolution(20, 40))), np.asarray(flat)[3:23])
    assert np.array_equal(np.asarray(fit(wide, Resolution(40, 20))), np.asarray(tall)[:, 20:40])
    words = np.array([0, 2**32 - 1, 0])  # the left of a random crop, and its bottom
    low = decode_to(png(random_pixels(1, (40, 60))), 1, "here", Resolution(20, 60), "random", words=words)
    assert np.array_equal(low[0], random_pixels(1, (40, 60))[20:])


def test_the_shorter_side_is_resized_with_antialiasing_and_the_centre_kept() -> None:
    checkers = np.indices((64, 96)).sum(0) % 2 * np.uint8(255)
    small = decode_to(png(checkers.astype(np.uint8)), 1, "here", square(8))
    assert small.shape == (1, 8, 8)
    assert np.abs(small.astype(int) - 128).max() <= 8  # without antialiasing it would be 0 or 255


SIZES = [
    ((375, 500), 256),
    ((30, 20), 64),
    ((7, 300), 7),
    ((5, 3), 8),
    ((700, 1000), 699),
    ((900, 800), 8),
    ((9, 1), 4),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "resolution"),
    [
        *((size, square(side)) for size, side in SIZES),
        ((375, 500), Resolution(60, 90)),
        ((30, 20), Resolution(64, 50)),
        ((9, 20), Resolution(8, 4)),
    ],
)
def test_decode_to_resizes_as_pil_up_to_rounding(size: tuple[int, int], resolution: Resolution, channels: int) -> None:
    """Both have integer weights, of 22 bits and of 16, so that some of the sums near a half go the other way."""
    for draw in range(2):
        source = random_pixels(draw, size if channels == 1 else (*size, 3)) // 2**draw * 2**draw
        ours = decode_to(png(source), channels, "here", resolution).astype(int)
        off = np.abs(ours - pixels(fit(Image.fromarray(source), resolution)))
        assert ours.shape == (channels, *resolution)
        assert off.max() <= 2
        assert (off > 0).sum() <= 2 + 0.01 * off.size


@pytest.mark.slow
def test_a_resize_has_the_same_bits_on_every_processor() -> None:
    code = (
        "import hashlib, torch; from itertools import product\n"
        "from diffpipe.data.decode.image import decode_to; from tests.support.tars import png, random_pixels\n"
        "from diffpipe.resolution import square\n"
        "digest = hashlib.sha256()\n"
        f"for (size, resolution), channels in product({SIZES}, (1, 3)):\n"
        "    data = png(random_pixels(0, size if channels == 1 else (*size, 3)))\n"
        "    digest.update(decode_to(data, channels, 'here', square(resolution)).tobytes())\n"
        "print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), digest.hexdigest())"
    )
    digests: dict[tuple[str, ...], str] = {}
    for capability, threads in (("default", "1"), ("avx2", "2"), ("", "1")):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        *how, digest = run.stdout.split()
        digests[tuple(how)] = digest
    assert len(digests) >= 2 or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    assert len(set(digests.values())) == 1


def test_an_image_of_the_right_size_is_untouched() -> None:
    words = np.zeros(3, dtype=np.int64)
    for source in (random_pixels(0, (12, 12)), random_pixels(0, (12, 12, 3))):
        ours = decode_to(png(source), 3 if source.ndim == 3 else 1, "here", square(12), "random", words=words)
        assert np.array_equal(ours, pixels(Image.fromarray(source)))


def test_the_random_crop_covers_every_offset_and_the_flip_is_a_mirror() -> None:
    wide = png(np.repeat(np.arange(20, dtype=np.uint8)[None], 16, axis=0))
    words = np.random.default_rng(0).integers(0, 2**32, (400, 3))
    words[:2, 0] = 0, 2**32 - 1
    lefts = [int(decode_to(wide, 1, "here", square(16), "random", words=row)[0, 0, 0]) for row in words]
    assert lefts[:2] == [0, 4]
    assert set(lefts) == {0, 1, 2, 3, 4}
    assert min(np.bincount(lefts)) > 50  # 80 expected of each, standard deviation 8
    plain, mirrored = (
        decode_to(wide, 1, "here", square(16), flip=True, words=np.array([0, 0, last])) for last in (2**31 - 1, 2**31)
    )
    assert np.array_equal(plain[..., ::-1], mirrored)
    assert plain[0, 0, 0] == 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_decode_to_has_the_bits_of_its_single_steps(kind: str, stored: int, channels: int) -> None:
    data = encoded(Image.fromarray(random_pixels(5, (16, 20, 3) if stored == 3 else (16, 20))), kind)
    whole = pixels(decode(data, channels, "here"))
    for words in np.random.default_rng(0).integers(0, 2**32, (20, 3)):
        for crop in ("center", "random"):
            for flip in (False, True):
                left = int(words[0]) * 5 >> 32 if crop == "random" else 2
                expected = whole[..., left : left + 16]
                expected = expected[..., ::-1] if flip and words[2] >= 2**31 else expected
                assert np.array_equal(decode_to(data, channels, "here", square(16), crop, flip, words), expected)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_an_image_that_memory_does_not_hold_is_a_bad_sample(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(image_module, "_resized", fails)
    with pytest.raises(BadSampleError, match=r"^x: too little memory"):
        decode_to(png(random_pixels(0, (9, 9))), 1, "x", square(4))
    monkeypatch.setattr(Image.Image, "resize", fails)
    with pytest.raises(BadSampleError, match="too little memory"):
        Encoding(square(4)).members(PackItem("x", png(random_pixels(0, (9, 9)))))
