"""The sample grids of a run, thinned and shrunk until a page can hold them all."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from diffpipe.files import read_regular

MOST_GRIDS = 24
_LARGEST_FILE = 64 << 20
_LARGEST_KEPT = 300_000
"""Bytes of a grid that is shown as it is. A larger one is shrunk, and stored as JPEG."""
_LONGEST_SIDE = 1024
_MOST_PIXELS = 1 << 26
_NAME = re.compile(r"step-([0-9]{1,15})\.png")


class SampleGrid(NamedTuple):
    """One grid, as a URL that holds the image."""

    step: int
    url: str
    width: int
    height: int


class SampleGrids(NamedTuple):
    """grids: by step. total: the grids of the run. shrunk: some are smaller than in the file. unreadable: how many."""

    grids: Sequence[SampleGrid]
    total: int
    shrunk: bool
    unreadable: int


def read_grids(folder: Path, most: int = MOST_GRIDS) -> SampleGrids:
    """The grids of a samples/ folder. Of many, the first, the last, and others at equal distances between them."""
    paths = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            paths[int(match[1])] = path
    steps = sorted(paths)
    if len(steps) > most:
        chosen = {round(i * (len(steps) - 1) / (most - 1)) for i in range(most)}
        steps = [steps[i] for i in sorted(chosen)]
    grids, shrunk, unreadable = [], False, 0
    for step in steps:
        try:
            grid, smaller = _grid(step, paths[step])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's errors of a damaged file
            unreadable += 1
            continue
        grids.append(grid)
        shrunk |= smaller
    return SampleGrids(grids, len(paths), shrunk, unreadable)


def _grid(step: int, path: Path) -> tuple[SampleGrid, bool]:
    content = read_regular(path, limit=_LARGEST_FILE)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        width, height = image.size
        if width * height > _MOST_PIXELS:
            raise ValueError("too large an image")
        image.load()
        kind = "png"
        if len(content) > _LARGEST_KEPT:
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=88)
            content, kind = buffer.getvalue(), "jpeg"
        grid = SampleGrid(step, f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *image.size)
    return grid, kind == "jpeg"
