"""The plot of a latent map."""

from __future__ import annotations

import numpy as np

from diffpipe.evaluation.image_grid import grid
from diffpipe.evaluation.latent_map import SIDE, Map, Plane
from diffpipe.extras import from_extra

with from_extra("report"):
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle


def plot_latent_map(latents: Map, title: str) -> Figure:
    """The latents coloured by class, and beside them the images that the stage decodes on their plane."""
    panels = 1 if latents.decoded is None else 2
    figure = Figure(figsize=(1.6 + 6 * panels, 6.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    k = len(latents.classes)
    colours = colormaps["tab10" if k <= 10 else "tab20" if k <= 20 else "turbo"]
    shades = [colours(i if k <= 20 else i / (k - 1)) for i in range(k)]
    axes[0].scatter(
        *latents.points.T, c=[shades[label] for label in latents.labels.tolist()], s=9, linewidths=0, alpha=0.8
    )
    axes[0].set_title("images by their class")
    dots = [Line2D([], [], marker="o", linestyle="", color=shade) for shade in shades]
    figure.legend(dots, latents.classes, loc="outside right upper", ncols=-(-k // 25), frameon=False)
    if latents.decoded is not None:
        (left, bottom), (right, top) = latents.corners.tolist()
        axes[0].add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fill=False, linestyle="--", edgecolor="grey")
        )
        cells = np.asarray(grid(latents.decoded, columns=SIDE))
        axes[1].imshow(cells, extent=(left, right, bottom, top), aspect="auto", cmap="gray", vmin=0, vmax=255)
        axes[1].set_title("decoded images in the dashed frame")
    for axis in axes:
        axis.set(xlabel=_axis(latents.plane, 0), ylabel=_axis(latents.plane, 1))
    figure.suptitle(title)
    return figure


def _axis(plane: Plane, i: int) -> str:
    if plane.explained is None:
        return f"latent {i + 1}"
    return f"principal component {i + 1} ({100 * plane.explained[i]:.1f}% of the variance)"
