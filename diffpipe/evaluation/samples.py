"""Generated images as files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid, save_png, save_pngs
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks, on_rank_zero
from diffpipe.train.runtime import Runtime

GRID = 100  # most images in grid.png


def write_samples(source: GeneratedImages, folder: Path, runtime: Runtime) -> None:
    """Write `000000.png` and so on by sample index, and `grid.png` with the first ones. A collective.

    Raises UserError where the folder cannot be made.
    """
    runtime.comm.raise_on_all_ranks(lambda: _make_folder(folder))

    def write(indices: range) -> Tensor:
        images = source.images(indices)
        save_pngs(images, indices, folder)
        return images[: max(0, GRID - indices.start)].clone()  # a view would keep the whole chunk in memory

    first = torch.cat(map_over_ranks(source.n, write, runtime, "sample"))
    columns = source.shape.classes or None
    on_rank_zero(runtime, lambda: save_png(grid(first, columns=columns), folder / "grid.png"))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error
