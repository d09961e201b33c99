"""A table of odd and broken images: each is decoded to known pixels, or refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.decode.image import decode, decode_to, pixels
from diffpipe.errors import BadSampleError
from diffpipe.resolution import square
from tests.support.broken_images import (
    COLOUR,
    GREY,
    JPEG,
    PNG,
    PROGRESSIVE,
    REFUSED,
    WEBP,
    bomb,
    by_pil,
    encoded,
)
from tests.support.tars import png, random_pixels

ALPHA = random_pixels(2, (24, 40))
SMOOTH = np.indices((24, 40)).transpose(1, 2, 0).repeat(2, axis=2)[..., :3].astype(np.uint8) * 4
LOSSLESS = encoded(COLOUR, "WEBP", lossless=True)


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("channels", [1, 3, None])
def test_it_is_refused_by_name(case: str, channels: int | None) -> None:
    make, message = REFUSED[case]
    with pytest.raises(BadSampleError, match=rf"^shard\.tar: key: {message}"):
        decode(make(), channels, "shard.tar: key")


def over(background: list[int], image: np.ndarray) -> np.ndarray:
    share = ALPHA[..., None] / 255
    return np.rint(image * share + np.array(background) * (1 - share))


CYAN = Image.new("CMYK", (40, 24), (255, 0, 0, 0))
WIDE = (GREY.astype(np.uint16) << 8) + COLOUR[..., 0]
PALETTE = Image.fromarray(COLOUR).quantize(16)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (40, 24), "red")], "duration": 40}

# To what each is decoded in RGB, and how far off a value may be.
DECODED: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray], int]] = {
    "grey": (lambda: png(GREY), lambda: GREY[..., None].repeat(3, 2), 0),
    "a grey JPEG": (lambda: encoded(GREY, "JPEG"), lambda: by_pil(encoded(GREY, "JPEG")), 0),
    "a JPEG": (lambda: JPEG, lambda: by_pil(JPEG), 0),
    "a progressive JPEG": (lambda: PROGRESSIVE, lambda: by_pil(PROGRESSIVE), 0),
    "a JPEG in RGB": (
        lambda: encoded(COLOUR, "JPEG", keep_rgb=True),
        lambda: by_pil(encoded(COLOUR, "JPEG", keep_rgb=True)),
        0,
    ),
    "a JPEG in CMYK": (
        lambda: encoded(CYAN, "JPEG", quality=95),
        lambda: np.broadcast_to(np.array([0, 255, 255]), COLOUR.shape),
        3,
    ),
    "a JPEG with bytes after its end": (lambda: JPEG + b"more", lambda: by_pil(JPEG), 0),
    "a JPEG that EXIF turns": (
        lambda: encoded(SMOOTH, "JPEG", exif=with_exif(6)),
        lambda: np.rot90(by_pil(encoded(SMOOTH, "JPEG")), -1),
        0,
    ),
    "a PNG that EXIF mirrors": (
        lambda: encoded(COLOUR, "PNG", exif=with_exif(2)),
        lambda: COLOUR[:, ::-1],
        0,
    ),
    "a JPEG with half of its EXIF": (
        lambda: encoded(COLOUR, "JPEG", exif=b"Exif\0\0" + with_exif(6).tobytes()[6:12]),
        lambda: by_pil(JPEG),
        0,
    ),
    "a palette": (lambda: encoded(PALETTE, "PNG"), lambda: np.asarray(PALETTE.convert("RGB")), 0),
    "a palette with one colour that is not seen": (
        lambda: encoded(PALETTE, "PNG", transparency=3),
        lambda: np.where(np.asarray(PALETTE)[..., None] == 3, 255, np.asarray(PALETTE.convert("RGB"))),
        0,
    ),
    "one bit": (
        lambda: encoded(Image.fromarray(GREY > 99), "PNG"),
        lambda: np.where(GREY[..., None] > 99, 255, 0).repeat(3, 2),
        0,
    ),
    "16 bits": (lambda: encoded(WIDE, "PNG"), lambda: np.rint(WIDE / 257)[..., None].repeat(3, 2), 0),
    "alpha": (
        lambda: encoded(np.dstack([COLOUR, ALPHA]), "PNG"),
        lambda: over([255, 255, 255], COLOUR),
        1,
    ),
    "grey with alpha": (
        lambda: encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "PNG"),
        lambda: over([255, 255, 255], GREY[..., None].repeat(3, 2)),
        1,
    ),
    "a lossless WebP": (lambda: LOSSLESS, lambda: COLOUR, 0),
    "an animated WebP: its first frame": (lambda: encoded(COLOUR, "WEBP", lossless=True, **FRAMES), lambda: COLOUR, 0),
    "an animated PNG: its first frame": (lambda: encoded(COLOUR, "PNG", **FRAMES), lambda: COLOUR, 0),
    "an animated GIF: its first frame": (
        lambda: encoded(PALETTE, "GIF", **FRAMES),
        lambda: np.asarray(PALETTE.convert("RGB")),
        0,
    ),
}


@pytest.mark.parametrize("case", DECODED)
def test_it_is_decoded(case: str) -> None:
    make, expected, within = DECODED[case]
    rgb = pixels(decode(make(), 3, "here")).transpose(1, 2, 0)
    assert rgb.shape == expected().shape
    assert np.abs(rgb.astype(int) - expected()).max() <= within
    side = min(rgb.shape[:2])
    top, left = ((whole - side) // 2 for whole in rgb.shape[:2])
    middle = rgb[top : top + side, left : left + side]
    assert np.array_equal(decode_to(make(), 3, "here", square(side)), middle.transpose(2, 0, 1))
    luma = expected() @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(pixels(decode(make(), 1, "here"))[0] - luma).max() <= within + 1


def test_one_grey_of_sixteen_bits_can_be_transparent() -> None:
    unseen = int(WIDE[3, 4])
    expected = np.rint(WIDE / 257)
    expected[unseen == WIDE] = 255
    assert np.array_equal(pixels(decode(encoded(WIDE, "PNG", transparency=unseen), 1, "here"))[0], expected)


@pytest.mark.parametrize(("background", "mode"), [("white", "L"), ("#404040", "L"), ("#102030", "RGB")])
def test_a_coloured_background_makes_a_grey_image_rgb(background: str, mode: str) -> None:
    colour = [255, 255, 255] if background == "white" else list(bytes.fromhex(background[1:]))
    data = encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "PNG")
    expected = over(colour, GREY[..., None].repeat(3, 2))
    assert np.abs(np.asarray(decode(data, 3, "here", background)) - expected).max() <= 1
    assert decode(data, None, "here", background).mode == mode


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 3), (33, 70)])
def test_a_jpeg_has_the_bits_that_pil_decodes(subsampling: int, progressive: bool, height: int, width: int) -> None:
    image = random_pixels(height, (height, width, 3))
    for quality in (30, 95):
        data = encoded(image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        assert np.array_equal(np.asarray(decode(data, 3, "here")), by_pil(data))
        assert np.array_equal(
            np.asarray(decode(data, 1, "here")), np.asarray(Image.fromarray(by_pil(data)).convert("L"))
        )


@pytest.mark.parametrize("data", [PNG, JPEG, PROGRESSIVE, WEBP], ids=["png", "jpeg", "progressive", "webp"])
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        rotted = bytearray(data)
        for at in generator.integers(0, len(data), 3).tolist():
            rotted[at] = int(generator.integers(256))
        try:
            assert decode(bytes(rotted[: int(generator.integers(len(data) + 1)) or None]), 3, "here").mode == "RGB"
        except BadSampleError as error:
            assert str(error).startswith("here: ")  # noqa: PT017 (that it is raised is not what is tested)


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    assert np.array_equal(pixels(decode(bomb(700), 3, "here")), np.zeros((3, 700, 700)))  # it is a whole image
    (tmp_path / "bomb.png").write_bytes(bomb(20000))
    code = """if True:
        import resource, sys
        from diffpipe.errors import UserError
        from diffpipe.data.decode import decode
        data = open(sys.argv[1], "rb").read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode(data, 3, "here")
        except UserError as error:
            print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, error)
    """
    words = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    before, after, *_ = out.split()
    assert "more than 64 megapixels" in out
    assert int(after) - int(before) < 20_000  # KiB; decoded it is 1.6 GB


def test_metadata_that_pil_cannot_write_again_leave_the_image_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.5
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(0, (8, 6, 3))).save(buffer, "JPEG", exif=exif)
    data = bytearray(buffer.getvalue())
    at = data.index(b"\x1a\x01\x05\x00") if b"\x1a\x01\x05\x00" in data else data.index(b"\x01\x1a\x00\x05")
    data[at + 2 : at + 4] = b"\x02\x00" if data[at : at + 1] == b"\x1a" else b"\x00\x02"  # text, not a fraction
    assert decode(bytes(data), 3, "x").size in [(6, 8), (8, 6)]


def test_sizes_in_a_tiff_that_no_number_holds_are_refused() -> None:
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, 0x7FFFFFF0), (323, 4, 0x7FFFFFF0), (324, 4, 200), (325, 4, 16)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(200)
    with pytest.raises(BadSampleError, match=r"^x: not an image that can be decoded"):
        decode(data, 1, "x")
