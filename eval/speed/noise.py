"""Images of noise with the spectrum of photographs: the same files as shards and as a folder per class."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffpipe.data.index.write_index import write_index

_SHARDS = 8
_CLASSES = 10
_CANVAS = 1024


class Kind(NamedTuple):
    """Images of one size and format, and the size that they are resized to."""

    name: str
    width: int
    height: int
    extension: str
    resolution: int
    quality: int = 0

    @property
    def resized(self) -> bool:
        return (self.width, self.height) != (self.resolution, self.resolution)


KINDS = {
    "png": Kind("32 x 32 PNG", 32, 32, "png", 32),
    "jpeg": Kind("256 x 256 JPEG", 256, 256, "jpg", 256, quality=90),
    "resized": Kind("500 x 375 JPEG to 256 x 256", 500, 375, "jpg", 256, quality=95),
}


def canvas(seed: int) -> np.ndarray:
    """Noise, float64 [h w 3], standard deviation 1, mostly grey, with an amplitude that falls with frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(_CANVAS)[:, None], np.fft.rfftfreq(_CANVAS))
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((3, _CANVAS, _CANVAS))
    planes = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.25)
    grey, red, blue = planes / planes.std(axis=(1, 2), keepdims=True)
    return np.stack([grey + 0.3 * red, grey, grey + 0.3 * blue], axis=-1)


def encoded_images(kind: Kind, n: int, seed: int) -> Iterator[bytes]:
    pixels = (128 + 50 * canvas(seed)).clip(0, 255).astype(np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(n):
        left, top = rng.integers(_CANVAS - kind.width), rng.integers(_CANVAS - kind.height)
        buffer = io.BytesIO()
        image = Image.fromarray(pixels[top : top + kind.height, left : left + kind.width])
        if kind.extension == "png":
            image.save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=kind.quality)
        yield buffer.getvalue()


def make_images(kind: Kind, folder: Path, n: int, seed: int) -> None:
    """Write the same images as `files/CLASS/NUMBER.EXTENSION` and as `shards` without labels."""
    (folder / "shards").mkdir(parents=True)
    for label in range(_CLASSES):
        (folder / "files" / str(label)).mkdir(parents=True)
    images = encoded_images(kind, n, seed)
    ends = np.linspace(0, n, _SHARDS + 1).astype(int).tolist()
    for number, (first, end) in enumerate(itertools.pairwise(tqdm(ends, desc=kind.name))):
        with tarfile.open(folder / "shards" / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, end):
                path = folder / "files" / str(i % _CLASSES) / f"{i:06d}.{kind.extension}"
                path.write_bytes(next(images))
                tar.add(path, path.name)
    write_index(folder / "shards")
