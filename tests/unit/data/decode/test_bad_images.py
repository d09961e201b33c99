"""A table of odd and broken images: each is decoded to known pixels, or refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.decode.image import decode, decode_to, pixels
from diffpipe.data.decode.latents import to_bytes
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import BadSampleError, UserError
from tests.support.tars import png, random_pixels, write_tar

GREY, COLOUR = random_pixels(0, (24, 40)), random_pixels(1, (24, 40, 3))
ALPHA = random_pixels(2, (24, 40))
SMOOTH = np.indices((24, 40)).transpose(1, 2, 0).repeat(2, axis=2)[..., :3].astype(np.uint8) * 4


def encoded(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def chunks(header: bytes, pieces: list[bytes]) -> bytes:
    """A PNG of a header and of compressed pixels."""
    parts = [b"IHDR" + header, *(b"IDAT" + piece for piece in pieces), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def bomb(side: int) -> bytes:
    """A whole black RGB PNG of side x side pixels, of a thousandth of their bytes, made without making them."""
    size, block = side * (3 * side + 1), 1 << 20
    deflate = zlib.compressobj(wbits=-15)
    zeros = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)  # which may be repeated
    deflate = zlib.compressobj(wbits=-15)
    rest = deflate.compress(bytes(size % block)) + deflate.flush()
    checksum = struct.pack(">I", size % 65521 << 16 | 1)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return chunks(header, [b"\x78\x9c", *[zeros] * (size // block), rest + checksum])


def rotted_jpeg() -> bytes:
    """A JPEG with one flipped bit, whose codes end before its data does: PIL decodes it without an error."""
    data = bytearray(encoded(COLOUR, "JPEG", quality=90))
    scan = data.index(b"\xff\xda") + 14
    for at in range(scan, len(data) - 2):
        data[at] ^= 4
        by_pil(bytes(data))
        try:
            decode(bytes(data), 3, "")
        except BadSampleError:
            return bytes(data)
        data[at] ^= 4
    raise AssertionError("no bit of it matters")


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


PNG, JPEG = png(COLOUR), encoded(COLOUR, "JPEG")
PROGRESSIVE = encoded(COLOUR, "JPEG", progressive=True)
WEBP, LOSSLESS = encoded(COLOUR, "WEBP"), encoded(COLOUR, "WEBP", lossless=True)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
NO_IMAGE = "not an image that can be decoded"

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a PNG cut short": (lambda: PNG[: len(PNG) // 2], f"{NO_IMAGE} .*cut short"),
    "a PNG without its end": (lambda: PNG[:-12], f"{NO_IMAGE} .*cut short"),
    "a PNG cut in its header": (lambda: PNG[:20], NO_IMAGE),
    "a JPEG cut short": (lambda: JPEG[: len(JPEG) // 2], f"{NO_IMAGE} .*truncated"),
    "a JPEG without its end marker": (lambda: JPEG[:-2], f"{NO_IMAGE} .*truncated"),
    "a JPEG cut in its header": (lambda: JPEG[:100], NO_IMAGE),
    "a progressive JPEG cut short": (lambda: PROGRESSIVE[: len(PROGRESSIVE) * 3 // 4], f"{NO_IMAGE} .*truncated"),
    "a WebP cut short": (lambda: WEBP[: len(WEBP) // 2], NO_IMAGE),
    "a GIF cut short": (lambda: (data := encoded(GREY, "GIF"))[: len(data) // 2], NO_IMAGE),
    "a rotted PNG": (lambda: flipped(PNG, len(PNG) // 2), f"{NO_IMAGE} .*checksum of its IDAT chunk"),
    "a rotted JPEG": (rotted_jpeg, f"{NO_IMAGE} .*Corrupt JPEG data"),
    "no bytes": (lambda: b"", f"{NO_IMAGE} .*it has no bytes"),
    "a web page": (lambda: HTML, f"{NO_IMAGE} .*no image begins with b'<!DOCTYPE html><'"),
    "zeros": (lambda: bytes(1000), f"{NO_IMAGE} .*no image begins with"),
    "floats": (lambda: encoded(GREY.astype(np.float32), "TIFF"), f"{NO_IMAGE} .*floats"),
    "a PNG of 20000 x 20000": (lambda: bomb(20000), "more than 64 megapixels; make the image smaller"),
    "a JPEG that says 65000 x 65000": (
        lambda: JPEG.replace(struct.pack(">HH", 24, 40), struct.pack(">HH", 65000, 65000)),
        "65000 x 65000 pixels, more than 64 megapixels",
    ),
    "a GIF that says 20000 x 20000": (
        lambda: encoded(GREY, "GIF").replace(struct.pack("<HH", 40, 24), struct.pack("<HH", 20000, 20000)),
        "more than 64 megapixels",
    ),
}


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
    top, left = ((side - min(rgb.shape[:2])) // 2 for side in rgb.shape[:2])
    square = rgb[top : top + min(rgb.shape[:2]), left : left + min(rgb.shape[:2])]
    assert np.array_equal(decode_to(make(), 3, "here", min(rgb.shape[:2])), square.transpose(2, 0, 1))
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


def stream_of(members: dict[str, bytes], folder: Path, **config):
    write_tar(folder / "shard.tar", members)
    write_index(folder)
    n = len({name.partition(".")[0] for name in members})
    return batches(
        DataConfig.model_validate(
            {
                "train": "",
                "batch_size": n,
                "resolution": 24,
                "channels": 3,
                "workers": 0,
                "shuffle_window": 100,
                **config,
            }
        ),
        load(str(folder)),
        0,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_keeps_its_position_in_a_batch(tmp_path: Path, workers: int) -> None:
    files = {f"bad{i}.png": make() for i, (make, _) in enumerate(REFUSED.values())}
    files |= {f"good{i}.jpg": png(random_pixels(i, (24, 24, 3))) for i in range(9)}  # the name does not matter
    members = {
        name: data for image, data in files.items() for name, data in ((image, data), (image[:-3] + "cls", b"7"))
    }
    stream = stream_of(members, tmp_path, labels=True, workers=workers, max_bad_samples=1)
    batch = next(stream)
    stream.close()
    assert batch.labels is not None
    assert batch.valid is not None
    assert sorted(batch.keys) == sorted(name[:-4] for name in files)
    assert batch.valid.tolist() == [key.startswith("good") for key in batch.keys]
    for key, image, label in zip(batch.keys, batch.images.numpy(), batch.labels.tolist(), strict=True):
        good = key.startswith("good")
        assert label == 7 * good
        assert np.array_equal(image, random_pixels(int(key[4:]), (24, 24, 3)).transpose(2, 0, 1) if good else 0 * image)
    bad = [key for key in batch.keys if key.startswith("bad")]
    for key, complaint in zip(bad, batch.errors, strict=True):
        assert complaint.startswith(f"{tmp_path}/shard.tar: {key}: ")


def test_no_sample_may_be_bad_by_default(tmp_path: Path) -> None:
    stream = stream_of({"a.png": HTML, "b.png": png(COLOUR)}, tmp_path)
    with pytest.raises(UserError, match=r"shard\.tar: a: not an image that can be decoded"):
        next(stream)
    (tmp_path / "b").mkdir()
    assert next(stream_of({"b.png": png(COLOUR)}, tmp_path / "b")).valid is None


def test_bytes_changed_after_indexing_are_a_bad_sample(tmp_path: Path) -> None:
    image = png(COLOUR)
    stream = stream_of({"a.png": image, "b.png": png(COLOUR[::-1])}, tmp_path, max_bad_samples=1)
    path = tmp_path / "shard.tar"
    path.write_bytes(path.read_bytes().replace(image, flipped(image, len(image) // 2)))
    batch = next(stream)
    assert batch.valid is not None
    assert [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if not valid] == ["a"]
    assert "a.png was changed after indexing" in batch.errors[0]


def test_a_missing_shard_is_not_a_bad_sample(tmp_path: Path) -> None:
    stream = stream_of({"a.png": png(COLOUR)}, tmp_path, max_bad_samples=9)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        next(stream)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_latents_that_cannot_be_read_are_zeros_of_the_right_shape(tmp_path: Path, batch_size: int) -> None:
    latents = np.ones((8, 3, 3), dtype=np.float32)
    members = {f"{i}.latents.npy": to_bytes(latents)[:200] if i in (0, 2) else to_bytes(latents) for i in range(4)}
    stream = stream_of(members, tmp_path, batch_size=batch_size, max_bad_samples=2)
    for _ in range(4 // batch_size):
        batch = next(stream)
        assert batch.valid is not None
        assert batch.images.shape == (batch_size, 8, 3, 3)
        for key, image, valid in zip(batch.keys, batch.images, batch.valid.tolist(), strict=True):
            assert valid == (key not in ("0", "2"))
            assert (image == float(valid)).all()


def test_max_pixels_can_be_set(tmp_path: Path) -> None:
    for i, (most, valid) in enumerate([(24 * 40, True), (24 * 40 - 1, False)]):
        (tmp_path / str(i)).mkdir()
        batch = next(
            stream_of({"a.png": png(COLOUR), "b.jpg": JPEG}, tmp_path / str(i), max_bad_samples=1, max_pixels=most)
        )
        assert batch.valid is not None
        assert batch.valid.tolist() == [valid, valid]
