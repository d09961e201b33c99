"""Which stages condition on class labels, and whether the data has them."""

from __future__ import annotations

from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape


def conditional_classes(conditional: bool, shape: ImageShape) -> int:
    """How many classes a stage conditions on, 0 for none. Raises UserError where it should and the data has none."""
    if conditional and not shape.classes:
        raise UserError("stage.conditional needs labels and the data has none; set data.labels=true")
    return shape.classes if conditional else 0
