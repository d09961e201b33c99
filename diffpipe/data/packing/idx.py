"""The idx format of MNIST and similar data sets: unsigned bytes behind a big-endian header
(http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError
from diffpipe.files import read_regular
from diffpipe.plural import plural

_UNSIGNED_BYTE = 8
_ANY_RATIO = 1 << 30  # bytes that may be compressed to however few
_MOST_RATIO = 100


class IdxSource:
    """The grey images of an idx file, with the labels of another one. Raises UserError."""

    def __init__(self, images: Path, labels: Path | None = None, classes: Sequence[str] | None = None):
        self.path = images
        self.images = read_idx(images, 3)
        self.labels: list[int] | None = None if labels is None else read_idx(labels, 1).tolist()
        self.classes = classes
        if self.labels is None:
            if classes is not None:
                raise UserError(f"{images}: class names without labels; give the labels file with --labels")
            return
        if len(self.labels) != len(self.images):
            raise UserError(
                f"{labels}: {plural(len(self.labels), 'label')} for {plural(len(self.images), 'image')}; give the file "
                "that matches"
            )
        if classes is not None and max(self.labels, default=-1) >= len(classes):
            raise UserError(
                f"{labels}: a label is {max(self.labels)}, but there are only {plural(len(classes), 'class name')}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def item(self, i: int) -> PackItem:
        return PackItem(f"{self.path}: image {i}", self.images[i])

    def names(self) -> list[str]:
        raise UserError(
            f"{self.path}: idx files have no names to split by; they have a train and a test file: see --split"
        )

    def column(self, name: str) -> list[str]:
        raise UserError(
            f"{self.path}: idx files have no columns to split by; they have a train and a test file: see --split"
        )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, gzipped or not, with this number of dimensions. Raises UserError."""
    header = 4 + 4 * dimensions
    try:
        data = read_regular(path, follow_links=True)
        if data.startswith(b"\x1f\x8b"):
            data = _decompressed(data, header)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the path of a whole idx file") from error
    if len(data) < header or data[:4] != bytes([0, 0, _UNSIGNED_BYTE, dimensions]):
        raise UserError(
            f"{path}: not an idx file of bytes with {plural(dimensions, 'dimension')}; check which file it is"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if 0 in shape:
        raise UserError(f"{path}: its header says {' x '.join(map(str, shape))}, which is nothing; give another file")
    if len(data) != header + math.prod(shape):
        raise UserError(
            f"{path}: has {plural(len(data), 'byte')}, but its header says {header + math.prod(shape)}; download it "
            "again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _decompressed(data: bytes, header: int) -> bytes:
    """A gzipped idx file, up to one byte more than its header says. Raises OSError for gigabytes in a few bytes."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        start = file.read(header)
        size = math.prod(struct.unpack(f">{len(start[4:]) // 4}I", start[4:])) if len(start) == header else 0
        if size > max(_ANY_RATIO, _MOST_RATIO * len(data)):
            raise OSError(f"its header says {size} bytes, more than images compress to")
        return start + file.read(size + 1)


def find_idx(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The images and labels files of a split (`train`, `t10k`) under their usual names, or None."""
    files: list[Path] = []
    for kind in ("images-idx3", "labels-idx1"):
        names = (f"{split}-{kind}-ubyte{suffix}" for suffix in ("", ".gz"))
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            return None
        files.append(path)
    return files[0], files[1]
