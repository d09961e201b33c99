"""Generated images as files, and which set of images a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.data.decode.stack import stack_images
from diffpipe.data.packing.folder import image_paths
from diffpipe.data.packing.tree import Folder
from diffpipe.errors import BadSampleError, UserError
from diffpipe.evaluation.image_grid import grid, png_path, save_png, save_pngs
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks, on_rank_zero
from diffpipe.files import atomic_write
from diffpipe.plural import plural
from diffpipe.resolution import Resolution
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

GRID = 100  # most images in grid.png
SAMPLES = "samples.json"  # the protocol of the images in a folder


def write_samples(source: GeneratedImages, folder: Path, runtime: Runtime) -> None:
    """Write `000000.png` and so on by sample index, `grid.png` with the first ones, and `samples.json`. A collective.

    A folder with images of the same set is continued: those that are there stay. Raises UserError where the folder
    holds other images, or cannot be written.
    """
    n = runtime.comm.raise_on_all_ranks(lambda: _prepare(source, folder) if runtime.main else 0)
    n = max(runtime.comm.gather(n))
    if n > source.n:
        print_on_rank_zero(runtime, f"{folder} is of {plural(n, 'image')} of this set and keeps them")

    def write(indices: range) -> Tensor:
        images = _existing(folder, indices, source.shape.channels)
        if images is None:
            images = source.images(indices)
            save_pngs(images, indices, folder)
        return images[: max(0, GRID - indices.start)].clone()  # a view would keep the whole chunk in memory

    first = torch.cat(map_over_ranks(source.n, write, runtime, "sample"))
    if n <= source.n:
        columns = source.shape.classes or None
        on_rank_zero(runtime, lambda: save_png(grid(first, columns=columns), folder / "grid.png"))


def stated_shape(place: str) -> tuple[int, Resolution] | None:
    """The channels and the resolution of the images that `diffpipe sample` wrote into a folder; None elsewhere."""
    described = _noted(Path(place))[0]
    return None if described is None else (described["channels"], Resolution(*described["size"]))


def _prepare(source: GeneratedImages, folder: Path) -> int:
    """Make the folder and note which images it is for: how many of them were there before."""
    described, (before, n) = _set(source.describe()), (None, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before, n = _noted(folder)
        images = len(image_paths(Folder(folder)))
        if before != described and images:
            differing = "" if before is None else f" (with another {', '.join(_differing(before, described))})"
            raise UserError(
                f"{folder} already holds {plural(images, 'image')} of another set{differing}; give an "
                "empty or a new folder"
            )
        n = n if before == described else 0
        if n < source.n:
            tree = {"n": source.n, "protocol": {"generated": described}}
            atomic_write(folder / SAMPLES, json.dumps(tree, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error
    return n


def _noted(folder: Path) -> tuple[dict[str, Any] | None, int]:
    """The set of images that the folder is for, and their number, by its samples.json."""
    try:
        tree = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
        described = dict(tree["protocol"]["generated"])
        height, width = described["size"]
        if not all(isinstance(value, int) for value in (described["channels"], height, width)):
            raise ValueError("its size is no number")
        return described, int(tree["n"])
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / SAMPLES}: cannot be read ({error}); give a new folder") from error


def _set(described: dict[str, Any]) -> dict[str, Any]:
    """All that image i depends on but i, as JSON values."""
    return json.loads(json.dumps({key: value for key, value in described.items() if key != "indices"}))


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def _existing(folder: Path, indices: range, channels: int) -> UInt8[Tensor, "b c h w"] | None:
    """The images of these indices, where all of them are there already and whole."""
    files = [png_path(folder, index) for index in indices]
    if not all(file.is_file() for file in files):
        return None
    try:
        return stack_images(((str(file), file.read_bytes()) for file in files), None, channels)
    except BadSampleError:  # a sampling was killed while it wrote one
        return None
