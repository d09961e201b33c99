"""Broken images and files that are no images, with the reason why each is refused; and a whole one of each format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from diffpipe.data.decode.image import decode
from diffpipe.errors import BadSampleError
from tests.support.tars import png, random_pixels

GREY, COLOUR = random_pixels(0, (24, 40)), random_pixels(1, (24, 40, 3))


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


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


PNG, JPEG = png(COLOUR), encoded(COLOUR, "JPEG")
PROGRESSIVE = encoded(COLOUR, "JPEG", progressive=True)
WEBP = encoded(COLOUR, "WEBP")
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
