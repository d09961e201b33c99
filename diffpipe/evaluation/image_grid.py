"""Images as files: one each, or many in one grid."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffpipe.files import atomic_write


def grid(images: UInt8[Tensor, "n c h w"], columns: int | None = None) -> Image.Image:
    """The images side by side, row by row; small ones are enlarged by an integer factor, so that pixels stay sharp."""
    n, _, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    factor = max(1, 64 // max(h, w))
    cells = F.pad(images, (1, 1, 1, 1), value=255)
    cells = torch.cat([cells, cells.new_full((-n % columns, *cells.shape[1:]), 255)])
    picture = rearrange(cells, "(rows columns) c h w -> (rows h) (columns w) c", columns=columns)
    return _to_pil(picture.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1))


def save_pngs(images: UInt8[Tensor, "n c h w"], indices: Iterable[int], folder: Path) -> None:
    """Each image as `000000.png` by its index."""
    for index, image in zip(indices, images, strict=True):
        save_png(_to_pil(rearrange(image, "c h w -> h w c")), png_path(folder, index))


def save_png(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a PNG, whole or not at all. options: of Pillow's PNG encoder. Raises OSError."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    atomic_write(path, buffer.getvalue(), durable=False)


def png_path(folder: Path, index: int) -> Path:
    """The file of the image with this index."""
    return folder / f"{index:06d}.png"


def _to_pil(picture: UInt8[Tensor, "h w c"]) -> Image.Image:
    array = picture.numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
