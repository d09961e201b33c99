"""Files of images and plots."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from diffpipe.errors import UserError
from diffpipe.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_png(out: Path) -> None:
    """Raise UserError unless `out` is the name of a PNG in a folder that can be made."""
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: the image is written as a PNG; give a name that ends in .png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a place that can be written") from error


def save(picture: Image.Image | Figure, out: Path) -> None:
    """Write the image or plot as a PNG, whole or not at all. Raises UserError where this fails."""
    try:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG") if isinstance(picture, Image.Image) else picture.savefig(buffer, format="png")
        atomic_write(out, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another name") from error
