"""Encoded bytes to uint8 pixels of one size: decode, convert, resize, crop, flip."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError
from torch.nn import functional as F  # noqa: N812

from diffpipe.data.decode.image_header import before_scan, check_jpeg, check_png, format_of
from diffpipe.data.decode.strip import is_narrow, is_strip, strip_window
from diffpipe.errors import BadSampleError
from diffpipe.resolution import Resolution

MAX_PIXELS = 64_000_000
_GREY = {"1", "L", "LA"}
_SPACES = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error)
_PIL_FAILS = (TypeError, LookupError, ArithmeticError, AttributeError, AssertionError)  # over a crafted file
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Crop = Literal["center", "random"]


class _TooLargeError(Exception):
    """An image has too many pixels; the arguments are its width and height."""


def decode(
    data: bytes, channels: int | None, where: str, background: str = "white", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The image in mode L (1 channel), RGB (3), or the closer of the two (None), oriented by its EXIF data.

    Transparent pixels are blended with the background (a colour as PIL names it), 16 bits are scaled to 8, and an
    animation gives its first frame. The size is checked before any pixel is decoded. Raises BadSampleError, which
    begins with `where`.
    """
    with refused(where, max_pixels):
        image = _oriented(data, max_pixels)
        return _convert(image if isinstance(image, Image.Image) else Image.fromarray(image), channels, background)


def image_resolution(data: bytes) -> Resolution:
    """Height and width of an image in the orientation of its EXIF data, by its header alone.

    Raises OSError, ValueError or another error of PIL where it is damaged.
    """
    kind = format_of(data)
    image = Image.open(io.BytesIO(data), formats=(kind,))
    turned = kind != "PNG" and image.getexif().get(ExifTags.Base.Orientation, 1) > 4  # of a PNG it is after the pixels
    return Resolution(*(image.size if turned else image.size[::-1]))


def loss_in_decoding(data: bytes, where: str) -> str | None:
    """The part of an image that `decode` to 1 or 3 channels of 8 bits leaves out, in words; None where it is exact.

    Raises BadSampleError, which begins with `where`.
    """
    with refused(where):
        image = Image.open(io.BytesIO(data), formats=(format_of(data),))
        if getattr(image, "is_animated", False):
            return "it is an animation, of which the first frame alone would be kept"
        if image.has_transparency_data:
            return "it has transparent pixels, which would be blended with white"
        if image.mode.startswith("I") or any("16" in str(tile.args) for tile in image.tile):
            return "it has 16 bits per channel, which would become 8"
        return None if image.mode in ("1", "L", "P", "RGB") else f"its mode is {image.mode}, which would become RGB"


def decode_to(
    data: bytes,
    channels: int,
    where: str,
    resolution: Resolution,
    crop: Crop = "center",
    flip: bool = False,
    words: np.ndarray | None = None,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "c h w"]:
    """The image for training: decoded over white, resized to the smallest size that covers the resolution, and cropped.

    words: three random 32-bit words, int64 [3], for the left and top of a random crop and for the flip; None: neither.
    Raises BadSampleError, which begins with `where`.
    """
    with refused(where, max_pixels):
        array = _oriented(data, max_pixels)
        if isinstance(array, Image.Image) or array.ndim != (2 if channels == 1 else 3):
            image = array if isinstance(array, Image.Image) else Image.fromarray(array)
            array = np.asarray(_convert(image, channels, "white"))
        height, width = array.shape[:2]
        size = _size(width, height, resolution)
        left, top = _corner(*size, resolution, words if crop == "random" else None)
        if is_strip(width, height, resolution):
            kept_height, kept_width = resolution
            if is_narrow(width, height, resolution):
                begin, end, length, top = strip_window(height, width, kept_width, kept_height, top)
                array, size = array[begin:end], (kept_width, length)
            else:
                begin, end, length, left = strip_window(width, height, kept_height, kept_width, left)
                array, size = np.ascontiguousarray(array[:, begin:end]), (length, kept_height)
        if array.shape[:2] != size[::-1]:
            array = _resized(array, size)
    array = array[top : top + resolution.height, left : left + resolution.width]
    if flip and words is not None and int(words[2]) >> 31:
        array = _tensor(array).flip(1).numpy()  # a copy, twenty times as fast as copying numpy's reversed view
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@contextlib.contextmanager
def refused(where: str, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Turn errors in the block into a BadSampleError that names the sample."""
    try:
        yield
    except (_TooLargeError, *_BOMBS) as error:
        large = f"{error.args[0]} x {error.args[1]} pixels, " if isinstance(error, _TooLargeError) else ""
        raise BadSampleError(
            f"{where}: {large}more than {max_pixels / 10**6:g} megapixels; make the image smaller"
        ) from error
    except (MemoryError, RuntimeError) as error:  # torch's is a RuntimeError
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise BadSampleError(f"{where}: too little memory to decode and resize it; make the image smaller") from error
    except _BROKEN as error:
        # For this error, PIL's message is only the repr of the buffer.
        reason = "its header is invalid" if isinstance(error, UnidentifiedImageError) else error
        raise BadSampleError(f"{where}: not an image that can be decoded ({reason}); replace or remove it") from error


def fit(image: Image.Image, resolution: Resolution) -> Image.Image:
    """The image resized to cover the resolution and cropped at the centre, as packing stores it.

    PIL resizes it, as other tools do. Torch needs a fifth of the time, but differs by 1 in one pixel of 200.
    """
    (width, height), (kept_height, kept_width) = image.size, resolution
    size = _size(width, height, resolution)
    left, top = _corner(*size, resolution, None)
    if is_strip(width, height, resolution):
        if is_narrow(width, height, resolution):
            begin, end, length, top = strip_window(height, width, kept_width, kept_height, top)
            image, size = image.crop((0, begin, width, end)), (kept_width, length)
        else:
            begin, end, length, left = strip_window(width, height, kept_height, kept_width, left)
            image, size = image.crop((begin, 0, end, height)), (length, kept_height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if image.size != (kept_width, kept_height):
        image = image.crop((left, top, left + kept_width, top + kept_height))
    return image


def _resized(array: UInt8[np.ndarray, "h w *rgb"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W *rgb"]:
    """Resized to this width and height as in `fit`, but by torch.

    That is bicubic with antialiasing, in integers, the same on every processor.
    """
    width, height = size
    source = _tensor(array)[None]
    planes = source[None] if array.ndim == 2 else source.permute(0, 3, 1, 2)  # channels last
    planes = F.interpolate(planes, (height, width), mode="bicubic", antialias=True)
    return (planes[0, 0] if array.ndim == 2 else planes.permute(0, 2, 3, 1)[0]).numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor. A read-only array is copied: torch warns of it."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _size(width: int, height: int, resolution: Resolution) -> tuple[int, int]:
    """Width and height after resizing: the smallest that cover the resolution."""
    kept_height, kept_width = resolution
    if is_narrow(width, height, resolution):
        return kept_width, max(kept_height, round(height * kept_width / width))
    return max(kept_width, round(width * kept_height / height)), kept_height


def _corner(width: int, height: int, resolution: Resolution, words: np.ndarray | None) -> tuple[int, int]:
    """Left and top of the kept part: at the centre, or as the random words say."""
    spare_x, spare_y = width - resolution.width, height - resolution.height
    if words is None:
        return spare_x // 2, spare_y // 2
    return int(words[0]) * (spare_x + 1) >> 32, int(words[1]) * (spare_y + 1) >> 32


def pixels(image: Image.Image) -> UInt8[np.ndarray, "c h w"]:
    """The pixels of an image in mode L or RGB, channels first."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _oriented(data: bytes, max_pixels: int) -> Image.Image | UInt8[np.ndarray, "h w *rgb"]:
    """The image in its own mode and the orientation of its EXIF data; only its pixels, if they are grey or RGB."""
    kind = format_of(data)
    if kind == "JPEG":
        check_jpeg(data)
    array = _decode_jpeg(data, max_pixels) if kind == "JPEG" else None
    if array is None:
        return _decode_with_pil(data, kind, max_pixels)
    metadata = before_scan(data)
    if b"Exif\0\0" not in metadata and b"tiff:Orientation" not in metadata:
        return array
    image = Image.fromarray(array)
    image.info |= Image.open(io.BytesIO(data), formats=("JPEG",)).info
    _apply_orientation(image)
    return image


def _decode_jpeg(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "h w *rgb"] | None:
    """The pixels of a JPEG, by libjpeg-turbo; None if PIL should decode it, which is slower and less strict.

    Where both decode it, the bits are the same. JPEG could be decoded at a smaller scale in less time, but the pixels
    would not be those of the resized whole.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size((int(width), int(height)), max_pixels)
        if space not in _SPACES:
            return None
        array = simplejpeg.decode_jpeg(data, _SPACES[space])
    except ValueError as error:
        # PIL ignores this error: invalid codes, or bytes that are left over.
        if str(error).startswith("Corrupt JPEG data"):
            raise
        return None
    return array[..., 0] if space == "Gray" else array


def _decode_with_pil(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    try:
        return _load_with_pil(data, kind, max_pixels)
    except _PIL_FAILS as error:
        raise ValueError(f"PIL fails with {type(error).__name__}: {str(error)[:100]}") from error


def _load_with_pil(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(kind,))
    _check_size(image.size, max_pixels)
    if kind == "PNG":
        check_png(data)
    image.load()
    if kind != "PNG" or any(word in str(name).lower() for name in image.info for word in ("exif", "xmp")):
        _apply_orientation(image)
    return image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _TooLargeError(*size)


def _apply_orientation(image: Image.Image) -> None:
    # Editors often truncate metadata. An image whose orientation cannot be read stays as it is.
    with contextlib.suppress(*_BROKEN, *_PIL_FAILS):
        ImageOps.exif_transpose(image, in_place=True)


def _convert(image: Image.Image, channels: int | None, background: str) -> Image.Image:
    image = _eight_bits(image)
    grey = image.mode in _GREY
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, background)
        grey = grey and len({*ImageColor.getrgb(background)[:3]}) == 1
        image = Image.alpha_composite(under, image.convert("RGBA"))
    mode = "L" if channels == 1 or (channels is None and grey) else "RGB"
    if image.mode == mode:
        return image
    return image.convert(mode) if image.mode in ("L", "1") else image.convert("RGB").convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel. Wider integers are scaled from 65535 to 255; PIL would clamp them."""
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if not image.mode.startswith("I"):
        return image
    wide = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
    scaled = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # the one value that is transparent
        opaque = Image.fromarray(np.where(wide == image.info["transparency"], 0, 255).astype(np.uint8))
        return Image.merge("LA", [scaled, opaque])
    return scaled
