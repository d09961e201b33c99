"""Properties of encoded images that need no decoding: against PIL, and under every damage."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.decode.image import decode
from diffpipe.data.decode.image_header import before_scan, check_jpeg, check_png, format_of
from diffpipe.errors import BadSampleError
from tests.support.tars import png, random_pixels

IMAGE = Image.fromarray(random_pixels(0, (6, 5, 3)))


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_the_format_is_pils(kind: str) -> None:
    data = encoded(kind)
    assert format_of(data) == Image.open(io.BytesIO(data)).format == kind


def test_other_bytes_are_no_image() -> None:
    with pytest.raises(ValueError, match="no image begins with b'<html>'"):
        format_of(b"<html>")
    with pytest.raises(ValueError, match="it has no bytes"):
        format_of(b"")


def test_a_jpeg_before_its_pixels_has_all_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("JPEG", exif=exif, icc_profile=b"profile" * 20)
    header = before_scan(data)
    assert len(header) < len(data)
    assert data[len(header) :].startswith(b"\xff\xda")  # the marker of a scan (ITU-T T.81, table B.1)
    image = Image.open(io.BytesIO(header + data[len(header) :][:16]))  # Pillow 12 reads that marker, too
    image = Image.open(io.BytesIO(header + data[len(header) :][:16]))  # Pillow 12 reads that marker, too
    assert (image.size, image.getexif()[0x0112], image.info["icc_profile"]) == ((5, 6), 6, b"profile" * 20)
    assert before_scan(b"\xff\xd8odd") == b"\xff\xd8odd"


def test_any_changed_byte_and_any_cut_of_a_png_is_noticed() -> None:
    data = png(random_pixels(1, (3, 3)))
    check_png(data)
    for at in range(8, len(data)):  # the first eight are the signature, which `format_of` reads
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(ValueError, match=r"it is cut short|the checksum of its .* chunk is wrong"):
            check_png(bytes(changed))
        with pytest.raises(ValueError, match="it is cut short"):
            check_png(data[:at])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), random_pixels(1, (3, 3)))


def test_formats_of_telephones_are_to_be_converted() -> None:
    with pytest.raises(ValueError, match="it is HEIC, AVIF or a video; convert it to JPEG or PNG"):
        format_of(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("L", (800, 800)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scans = [place.start() for place in re.finditer(b"\xff\xda", data)]
    second = data[scans[1] : scans[2]]
    check_jpeg(data)
    with pytest.raises(BadSampleError, match=r"^x: not an image that can be decoded \(it has 10001 scans\)"):
        decode(data[: scans[1]] + second * 10_000 + b"\xff\xd9", 1, "x")
