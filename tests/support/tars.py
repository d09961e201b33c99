"""Small shards for the tests, written by the standard library alone."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """The PNG of uint8 pixels [h w] or [h w c]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(
    path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT
) -> Path:
    """A plain tar of the members, in order."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, counts: list[int], size: tuple[int, int] = (8, 8), classes: int = 3) -> list[Path]:
    """Shards of random grey images, `counts` of them in each, with labels; key i has pixels from seed i."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    i = 0
    for number, count in enumerate(counts):
        members: dict[str, bytes] = {}
        for _ in range(count):
            members[f"{i:05d}.png"] = png(random_pixels(i, size))
            members[f"{i:05d}.cls"] = str(i % classes).encode()
            i += 1
        paths.append(write_tar(folder / f"shard-{number:03d}.tar", members))
    return paths


def random_pixels(seed: int, size: tuple[int, ...] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
