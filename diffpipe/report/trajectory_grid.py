"""The reverse chain of a diffusion, as an image grid."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from PIL import Image

from diffpipe.evaluation.trajectory import Trajectory
from diffpipe.report.labelled_grid import labelled_grid


def trajectory_grid(trajectory: Trajectory, title: str) -> Image.Image:
    """Two rows per image, x_t and beneath it the x_0 predicted from it, with sigma/alpha above each column.

    title: the run's.
    """
    pairs = torch.stack([trajectory.x_t, trajectory.x0], dim=1)
    cells = rearrange(pairs, "n pair k c h w -> (n pair k) c h w")
    columns = [_heading(ratio) for ratio in trajectory.ratios]
    rows = [text for name in trajectory.rows for text in (f"{name}:  x_t", "predicted x_0")]
    return labelled_grid(cells, columns, f"{title}: {trajectory.sampler}; columns by sigma/alpha", rows=rows)


def _heading(ratio: float) -> str:
    if ratio == 0:
        return "image"
    if math.isinf(ratio):
        return "∞"
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"
