"""Encoded images as one tensor of uint8 pixels: the one way from files of any kind to images that are scored."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffpipe.data.decode.image import decode, decode_to, pixels
from diffpipe.errors import UserError
from diffpipe.resolution import Resolution


def stack_images(
    encoded: Iterable[tuple[str, bytes]], resolution: Resolution | None, channels: int
) -> UInt8[Tensor, "b c h w"]:
    """The images, each given by its name in messages and its bytes: decoded, resized and cropped at the centre.

    resolution: None: they keep their size, which must be the same for all. Raises UserError.
    """
    rows: list[np.ndarray] = []
    for where, data in encoded:
        if resolution is None:
            row = pixels(decode(data, channels, where))
        else:
            row = decode_to(data, channels, where, resolution)
        if rows and row.shape != rows[0].shape:
            raise UserError(differ(where, row.shape, rows[0].shape))
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


def differ(where: str, shape: tuple[int, ...], other: tuple[int, ...]) -> str:
    """The message that an image [c h w] has another size than the ones before it."""
    return (
        f"{where}: it has {shape[-2]}x{shape[-1]} pixels (height x width) and the images before it "
        f"{other[-2]}x{other[-1]}; pack them with --resolution to bring all to one size, or give eval its --resolution"
    )


def png_bytes(array: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Pixels as an uncompressed PNG, so that they go the way of all images."""
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array).save(
        buffer, "PNG", compress_level=0
    )
    return buffer.getvalue()
