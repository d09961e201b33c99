"""Image grids with a title and labels of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffpipe.evaluation.image_grid import grid
from diffpipe.extras import from_extra

with from_extra("report"):
    from matplotlib import font_manager

CELL = 64  # the least width of an image in pixels: room for the number above it
TEXT, LINE = 13, 26  # the height of the font and of a line, in pixels


def labelled_grid(
    images: UInt8[Tensor, "n c h w"], columns: Sequence[str], title: str, rows: Sequence[str] = ()
) -> Image.Image:
    """The images row by row, with a title, a label above each column and before each row. Small images are enlarged."""
    factor = math.ceil(CELL / images.shape[3])
    cells = grid(images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3), columns=len(columns))
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TEXT)  # class names may hold any character
    margin = max((math.ceil(font.getlength(label)) + TEXT for label in rows), default=0)
    width = max(margin + cells.width, math.ceil(font.getlength(title)) + LINE)
    picture = Image.new("RGB", (width, cells.height + 2 * LINE), "white")
    left, pen = margin + (width - margin - cells.width) // 2, ImageDraw.Draw(picture)
    picture.paste(cells, (left, 2 * LINE))
    pen.text((width / 2, LINE / 2), title, fill="black", font=font, anchor="mm")
    for i, label in enumerate(columns):
        middle = left + (i + 0.5) * cells.width / len(columns)
        pen.text((middle, 1.5 * LINE), label, fill="black", font=font, anchor="mm")
    for i, label in enumerate(rows):
        middle = 2 * LINE + (i + 0.5) * cells.height / len(rows)
        pen.text((left - TEXT / 2, middle), label, fill="black", font=font, anchor="rm")
    return picture
