"""Images between two ends, as an image grid."""

from __future__ import annotations

from einops import rearrange
from PIL import Image

from diffpipe.evaluation.interpolation import Interpolation
from diffpipe.report.labelled_grid import labelled_grid


def interpolation_grid(interpolation: Interpolation, title: str) -> Image.Image:
    """One row per pair, with the fraction of the way above each column. title: the run's."""
    cells = rearrange(interpolation.images, "n k c h w -> (n k) c h w")
    return labelled_grid(cells, interpolation.columns, f"{title}: between {interpolation.between}")
