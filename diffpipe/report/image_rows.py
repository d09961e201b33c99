"""Pictures of several families side by side: a row of samples each, the same classes in the same columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from einops import rearrange
from jaxtyping import UInt8
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 56  # pixels of the picture that an image takes, about: small ones are enlarged by a whole factor
LARGEST = 112
GAP, MARGIN = 2, 12
INK, GRAY = (20, 20, 20), (110, 110, 110)


class ImageRow(NamedTuple):
    """One family's images, with its name and what there is to say of it in small print."""

    name: str
    note: str
    images: UInt8[Tensor, "k c h w"]


def images_per_row(classes: int) -> int:
    """How many images to show: each class once or some times over, about twenty."""
    return classes * max(1, 20 // classes) if 0 < classes <= 40 else 20


def row_image(images: UInt8[Tensor, "k c h w"]) -> Image.Image:
    """The images in one row, transparent between them."""
    cells = [_cell(image) for image in images]
    width, height = cells[0].size
    picture = Image.new("RGBA", (len(cells) * (width + GAP) - GAP, height))
    for i, cell in enumerate(cells):
        picture.paste(cell, (i * (width + GAP), 0))
    return picture


def stack_rows(rows: Sequence[ImageRow], headings: Sequence[str]) -> Image.Image:
    """The rows one below the other on white, their names at the left; headings, if any, above the columns."""
    large, small = _font(17), _font(12)
    strips = [row_image(row.images) for row in rows]
    left = 2 * MARGIN + max(int(max(large.getlength(row.name), small.getlength(row.note))) for row in rows)
    top = MARGIN + (18 if headings else 0)
    width = left + max(picture.width for picture in strips) + MARGIN
    height = top + sum(picture.height + 3 * GAP for picture in strips) + MARGIN
    whole = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(whole)
    cell = (strips[0].width + GAP) / len(rows[0].images)
    for i, heading in enumerate(headings):
        draw.text((left + (i + 0.5) * cell - GAP / 2, top - 5), heading, GRAY, small, anchor="ms")
    for row, picture in zip(rows, strips, strict=True):
        middle = top + picture.height / 2
        draw.text((MARGIN, middle - (8 if row.note else 0)), row.name, INK, large, anchor="lm")
        draw.text((MARGIN, middle + 12), row.note, GRAY, small, anchor="lm")
        whole.paste(picture, (left, top), picture)
        top += picture.height + 3 * GAP
    return whole


def _cell(image: UInt8[Tensor, "c h w"]) -> Image.Image:
    array = rearrange(image, "c h w -> h w c").numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
    size = max(picture.size)
    if size > LARGEST:
        return picture.resize((picture.width * LARGEST // size, picture.height * LARGEST // size), Image.Resampling.BOX)
    factor = max(1, CELL // size)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font lacks what names may hold; matplotlib brings one along.
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
