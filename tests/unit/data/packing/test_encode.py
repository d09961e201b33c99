"""The encoding of packed images: unchanged, resized, on a background, in another format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import images, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError
from diffpipe.resolution import square
from tests.support.tars import png, random_pixels, write_tar


def test_a_resolution_resizes_and_crops_at_the_centre(folder: Path, tmp_path: Path) -> None:
    pack(FolderSource(folder), tmp_path / "out", encoding=Encoding(resolution=square(10)))
    shards = load(str(tmp_path / "out"))
    assert images(shards, range(6), None, 3).shape == (6, 3, 10, 10)
    ant = next(i for i in range(6) if shards.sample(0, i).key == "00000001")
    original = np.asarray(Image.open(folder / "ant" / "z.png"))
    assert np.array_equal(images(shards, [ant], None, 3)[0].permute(1, 2, 0).numpy(), original[:, 2:12])


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def written(data: bytes, **options) -> Image.Image:
    ((_, result),) = Encoding(**options).members(PackItem("here", data)).items()
    return Image.open(io.BytesIO(result))


COLOUR = Image.fromarray(random_pixels(0, (8, 8, 3)))


@pytest.mark.parametrize(("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_bytes_are_kept_where_nothing_has_to_change(kind: str, extension: str) -> None:
    data = encoded(COLOUR, kind)
    for resolution in (None, square(8)):
        assert Encoding(resolution).members(PackItem("here", data)) == {extension: data}
    assert Encoding(background="black").members(PackItem("here", data)) == {extension: data}
    for resized in (Encoding(square(4)), Encoding(format="png")):
        ((name, result),) = resized.members(PackItem("here", data)).items()
        assert (name, result[:8]) == ("png", b"\x89PNG\r\n\x1a\n")


def test_png_is_lossless_and_quality_is_applied() -> None:
    data = encoded(COLOUR, "BMP")
    assert np.array_equal(np.asarray(written(data)), np.asarray(COLOUR))
    for kind in ("jpeg", "webp"):
        assert written(data, format=kind).format == kind.upper()
        sizes = [len(Encoding(format=kind, quality=q).members(PackItem("", data)).popitem()[1]) for q in (10, 60, 100)]
        assert sizes == sorted(set(sizes))
    red = Image.new("RGB", (16, 16), "blue")
    red.paste("red", (3, 3, 4, 16))  # one pixel wide: at half the chroma resolution it would be purple
    assert written(encoded(red), format="jpeg").getpixel((3, 9))[0] > 220  # type: ignore[index]


def test_a_resize_is_pils_bicubic() -> None:
    wide = Image.fromarray(random_pixels(1, (30, 50, 3)))
    expected = wide.resize((17, 10), Image.Resampling.BICUBIC).crop((3, 0, 13, 10))
    assert np.array_equal(np.asarray(written(encoded(wide), resolution=square(10))), np.asarray(expected))


def test_wide_cmyk_and_rotated_images_become_plain_ones() -> None:
    wide = np.arange(0, 65536, 257 * 4, dtype=np.uint16).reshape(8, 8)
    assert np.array_equal(np.asarray(written(encoded(Image.fromarray(wide)), format="png")), np.rint(wide / 257))
    ink = COLOUR.convert("CMYK")
    there = Image.open(io.BytesIO(encoded(ink, "JPEG", quality=100))).convert("RGB")
    assert np.array_equal(np.asarray(written(encoded(ink, "JPEG", quality=100), format="png")), np.asarray(there))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: clockwise by 90 degrees it is upright
    turned = written(encoded(COLOUR, exif=exif), format="png")
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(COLOUR), -1))
    assert not turned.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_blended_with_the_background(mode: str) -> None:
    image = COLOUR.convert(mode)
    image.putalpha(Image.fromarray(random_pixels(5)))
    data = encoded(image)
    assert Encoding().members(PackItem("here", data)) == {"png": data}
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    for colour, value in (("#ff8000", [255, 128, 0]), ("black", [0, 0, 0]), (None, [255, 255, 255])):
        expected = rgba[..., :3] * alpha + np.array(value) * (1 - alpha)
        result = written(data, background=colour, format="keep" if colour else "png").convert("RGB")
        assert np.abs(np.asarray(result) - expected).max() <= 1


def test_a_sample_with_two_images_is_not_resized(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_tar(tmp_path / "src" / "a.tar", {"0.png": png(random_pixels(0)), "0.jpg": encoded(COLOUR, "JPEG")})
    write_index(tmp_path / "src")
    source = ShardSource(load(str(tmp_path / "src")))
    pack(source, tmp_path / "same")
    with pytest.raises(UserError, match=r"0\.png: has a \.jpg beside its image"):
        pack(source, tmp_path / "small", encoding=Encoding(square(4)))
