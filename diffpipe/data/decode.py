"""From encoded bytes to uint8 pixels of one size: decode, convert, resize, crop, flip."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from diffpipe.contract import UserError

MAX_PIXELS = 64_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = {"1", "L", "LA", "I", "I;16", "I;16B"}
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Crop = Literal["center", "random"]


def decode(data: bytes, channels: int | None, where: str, background: str = "white") -> Image.Image:
    """The image in mode L (1 channel), RGB (3), or whichever is nearer to its own (None), turned as its EXIF says.

    Transparency is laid over the background (a colour as PIL names it), 16 bits are scaled to 8. The header's size is
    checked before any pixel is decoded. Raises UserError that begins with `where`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{where}: {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} megapixels; "
                "make the image smaller"
            )
        ImageOps.exif_transpose(image, in_place=True)
        return _convert(image, channels, background)
    except UserError:
        raise
    except _BOMBS as error:
        raise UserError(f"{where}: more than {MAX_PIXELS // 10**6} megapixels; make the image smaller") from error
    except _BROKEN as error:
        raise UserError(f"{where}: not an image that can be decoded ({error}); replace or remove it") from error


def fit(image: Image.Image, resolution: int, crop: Crop, flip: bool, words: np.ndarray) -> Image.Image:
    """The image resized (bicubic with antialiasing) so that its shorter side is `resolution`, and cropped to a square.

    words: three random 32-bit words, int64 [3], for a random crop's left and top and for the flip.
    """
    short = min(image.size)
    if short != resolution:
        width, height = (max(resolution, round(side * resolution / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    spare_x, spare_y = image.width - resolution, image.height - resolution
    if spare_x or spare_y:
        left, top = spare_x // 2, spare_y // 2
        if crop == "random":
            left, top = int(words[0]) * (spare_x + 1) >> 32, int(words[1]) * (spare_y + 1) >> 32
        image = image.crop((left, top, left + resolution, top + resolution))
    if flip and int(words[2]) >> 31:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def pixels(image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
    """The pixels of an image in mode L or RGB."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _convert(image: Image.Image, channels: int | None, background: str) -> Image.Image:
    mode = "L" if channels == 1 or (channels is None and image.mode in _GREY) else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):  # 16 bits, which PIL would clamp to 255
        wide = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), rgba)
    return image.convert("RGB").convert(mode) if image.mode not in ("L", "1") else image.convert(mode)
