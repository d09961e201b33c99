"""Images of several runs in rows, with the same classes in the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffpipe.extras import from_extra

with from_extra("report"):
    from matplotlib import font_manager

CELL = 56  # about the size of an image in pixels: smaller ones are enlarged by an integer factor
LARGEST = 112  # larger images are shrunk to this size
GAP, MARGIN = 2, 12
INK, GRAY = (20, 20, 20), (110, 110, 110)


class ImageRow(NamedTuple):
    """One run's images, its name, and a note in small print."""

    name: str
    note: str
    images: UInt8[Tensor, "k c h w"]


def images_per_row(classes: int) -> int:
    """The number of images to show, about twenty: each class equally often."""
    return classes * max(1, 20 // classes) if 0 < classes <= 40 else 20


def row_image(images: UInt8[Tensor, "k c h w"]) -> Image.Image:
    """The images side by side, with transparent gaps."""
    cells = [_cell(image) for image in images]
    width, height = cells[0].size
    row = Image.new("RGBA", (len(cells) * (width + GAP) - GAP, height))
    for i, cell in enumerate(cells):
        row.paste(cell, (i * (width + GAP), 0))
    return row


def stack_rows(rows: Sequence[ImageRow], headings: Sequence[str]) -> Image.Image:
    """The rows below each other on white, with names at the left and headings above the columns, if any."""
    large, small = _font(17), _font(12)
    row_images = [row_image(row.images) for row in rows]
    left = 2 * MARGIN + max(int(max(large.getlength(row.name), small.getlength(row.note))) for row in rows)
    top = MARGIN + (18 if headings else 0)
    width = left + max(image.width for image in row_images) + MARGIN
    height = top + sum(image.height + 3 * GAP for image in row_images) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    cell = (row_images[0].width + GAP) / len(rows[0].images)
    for i, heading in enumerate(headings):
        draw.text((left + (i + 0.5) * cell - GAP / 2, top - 5), heading, GRAY, small, anchor="ms")
    for row, image in zip(rows, row_images, strict=True):
        middle = top + image.height / 2
        draw.text((MARGIN, middle - (8 if row.note else 0)), row.name, INK, large, anchor="lm")
        draw.text((MARGIN, middle + 12), row.note, GRAY, small, anchor="lm")
        canvas.paste(image, (left, top), image)
        top += image.height + 3 * GAP
    return canvas


def _cell(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    array = rearrange(image, "c h w -> h w c").numpy()
    cell = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
    size = max(cell.size)
    if size > LARGEST:
        return cell.resize((cell.width * LARGEST // size, cell.height * LARGEST // size), Image.Resampling.BOX)
    factor = max(1, CELL // size)
    return cell.resize((cell.width * factor, cell.height * factor), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Names may hold characters that Pillow's own font lacks. matplotlib comes with this one.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
