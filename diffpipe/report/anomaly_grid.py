"""The most and the least anomalous images, as an image grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffpipe.report.labelled_grid import labelled_grid

COLUMNS = 16
FRAME = {"normal": (70, 140, 70), "abnormal": (210, 40, 40)}


def most_and_least_anomalous(
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " _"]]], pixels: Mapping[str, UInt8[Tensor, "_ c h w"]]
) -> Image.Image:
    """For each score a row of its most and a row of its least anomalous images: normal in green frames, others in red.

    scores: by set (`normal`, `abnormal`) and name, one per image. pixels: by set.
    """
    framed = torch.cat([_framed(images, FRAME[name]) for name, images in pixels.items()])
    columns = min(COLUMNS, len(framed))
    rows, row_labels = [], []
    for score in scores["normal"]:
        order = np.argsort(-np.concatenate([scores[name][score] for name in pixels]), kind="stable")
        rows += [framed[order[:columns].copy()], framed[order[::-1][:columns].copy()]]
        row_labels += [f"most anomalous by {score}", "least"]
    numbers = [str(i + 1) for i in range(columns)]
    return labelled_grid(torch.cat(rows), numbers, "green: normal, red: abnormal", rows=row_labels)


def _framed(images: UInt8[Tensor, "n c h w"], colour: tuple[int, int, int]) -> UInt8[Tensor, "n 3 h2 w2"]:
    rgb = images.expand(-1, 3, -1, -1)
    return torch.stack([F.pad(rgb[:, c], (2, 2, 2, 2), value=colour[c]) for c in range(3)], dim=1)
