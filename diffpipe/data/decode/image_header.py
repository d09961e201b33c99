"""Properties of an encoded image that need no decoding: its format, its metadata, whether it is whole."""

from __future__ import annotations

import re
import zlib

_MOST_SCANS = 500  # as in libjpeg-turbo's own tools
_PNG = b"\x89PNG\r\n\x1a\n"
# The first bytes of each supported format, by PIL's name for it. File names are not trusted.
_MAGIC = {
    "PNG": re.compile(re.escape(_PNG)),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PPM": re.compile(rb"P[1-6]\s"),
}


def format_of(data: bytes) -> str:
    """PIL's name for the format of an image. Raises ValueError where the format is not supported."""
    for name, magic in _MAGIC.items():
        if magic.match(data):
            return name
    if data[4:8] == b"ftyp":
        raise ValueError("it is HEIC, AVIF or a video; convert it to JPEG or PNG")
    raise ValueError(f"no image begins with {data[:16]!r}" if data else "it has no bytes")


def before_scan(data: bytes) -> bytes:
    """A JPEG up to its pixels, with all its metadata; or the whole JPEG, where its layout is unusual."""
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xda":
            return data[:at]
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data


def check_jpeg(data: bytes) -> None:
    """Raise ValueError where a JPEG has more scans than `_MOST_SCANS`.

    Progressive files have about ten. A scan of a hundred bytes goes over all pixels, so a file of a megabyte could
    take minutes. In the data of a scan 0xFF is followed by 0x00 or by a restart marker.
    """
    if (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise ValueError(f"it has {scans} scans")


def check_png(data: bytes) -> None:
    """Raise ValueError where a chunk of a PNG is cut short or its checksum is wrong.

    PIL checks all chunks except those with the pixels.
    """
    view, at, kind = memoryview(data), len(_PNG), b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(view[at : at + 4])
        if end + 4 > len(data):
            raise ValueError("it is cut short")
        kind = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
        at = end + 4
