"""Pictures with words on them: what a row and a column are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid

CELL = 64  # an image's least width in the picture: room for a number above it
TEXT, LINE = 13, 26  # a letter's height and a line's, in pixels


def labelled_grid(
    images: UInt8[Tensor, "n c h w"], columns: Sequence[str], title: str, rows: Sequence[str] = ()
) -> Image.Image:
    """The images row by row, small ones enlarged, with a title above them and words above columns and before rows."""
    factor = math.ceil(CELL / images.shape[3])
    cells = grid(images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3), columns=len(columns))
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), TEXT)  # a class may have any name
    margin = max((math.ceil(font.getlength(word)) + TEXT for word in rows), default=0)
    width = max(margin + cells.width, math.ceil(font.getlength(title)) + LINE)
    picture = Image.new("RGB", (width, cells.height + 2 * LINE), "white")
    left, pen = margin + (width - margin - cells.width) // 2, ImageDraw.Draw(picture)
    picture.paste(cells, (left, 2 * LINE))
    pen.text((width / 2, LINE / 2), title, fill="black", font=font, anchor="mm")
    for i, word in enumerate(columns):
        middle = left + (i + 0.5) * cells.width / len(columns)
        pen.text((middle, 1.5 * LINE), word, fill="black", font=font, anchor="mm")
    for i, word in enumerate(rows):
        middle = 2 * LINE + (i + 0.5) * cells.height / len(rows)
        pen.text((left - TEXT / 2, middle), word, fill="black", font=font, anchor="rm")
    return picture


def require_png(out: Path) -> None:
    """Raise UserError, before any work is done, where a picture of this name could not be written."""
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: the picture is a PNG; give it a name that ends in .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a place that can be written") from error


def save(picture: Image.Image | Figure, out: Path) -> None:
    """Raises UserError where it cannot be written."""
    try:
        picture.savefig(out) if isinstance(picture, Figure) else picture.save(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another name") from error
