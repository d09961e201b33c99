"""The CIFAR-10 archive for Python (https://www.cs.toronto.edu/~kriz/cifar.html), read without extracting it."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from diffpipe.data.index.tar_stream import TarStream, headers
from diffpipe.data.packing.pickles import load_plain
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError
from diffpipe.files import open_regular
from diffpipe.plural import plural

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_NAMES = "batches.meta"
_MAX_BYTES = 256 << 20  # eight times a batch
_MAX_ARCHIVE = 1 << 30  # five times CIFAR-10's
_SIDE = 32


class CifarSource:
    """The images of one split, "train" or "test", with the class names of the archive. Raises UserError."""

    def __init__(self, path: Path, split: str = "train"):
        if split not in _BATCHES:
            raise UserError(f"--split {split}: CIFAR-10 has {' and '.join(_BATCHES)}; give one of them")
        self.path = path
        wanted = _BATCHES[split]
        pickles = _read_pickles(path, {*wanted, _NAMES})
        # An archive may hold fewer batches than the published one, but only the last ones may be missing.
        batches = [name for name in wanted if name in pickles]
        if _NAMES not in pickles or not batches or batches != wanted[: len(batches)]:
            lacking = _NAMES if _NAMES not in pickles else next(name for name in wanted if name not in pickles)
            raise UserError(f"{path}: no {lacking} in it; give the whole archive cifar-10-python.tar.gz")
        self.classes = _class_names(pickles[_NAMES], f"{path}: {_NAMES}")
        self.labels: list[int] = []
        self._files: list[str] = []
        images: list[np.ndarray] = []
        for name in batches:
            data, labels, files = _batch(pickles.pop(name), len(self.classes), f"{path}: {name}")
            images.append(rearrange(data, "n (c h w) -> n h w c", c=3, h=_SIDE))
            self.labels += labels
            self._files += files
        self.images = np.concatenate(images)

    def __len__(self) -> int:
        return len(self.images)

    def item(self, i: int) -> PackItem:
        return PackItem(f"{self.path}: image {i}", self.images[i])

    def names(self) -> list[str]:
        if len(self._files) != len(self):
            raise UserError(f"{self.path}: its batches hold no file names to split by; use --split")
        return self._files

    def column(self, name: str) -> list[str]:
        raise UserError(f"{self.path}: the archive has no columns to split by; use --split")


class _Bounded:
    """A file that is an error where it goes on for longer than any archive of CIFAR: a few bytes hold gigabytes."""

    def __init__(self, file: gzip.GzipFile):
        self._file, self._left = file, _MAX_ARCHIVE

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"it has more than {_MAX_ARCHIVE} bytes")
        return data


def _read_pickles(path: Path, names: set[str]) -> dict[str, Any]:
    """The contents of the pickles with these names."""
    pickles: dict[str, Any] = {}
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file, gzip.GzipFile(fileobj=file) as unzipped:
            stream = TarStream(_Bounded(unzipped), str(path))
            for info in headers(stream, str(path)):
                name = info.name.rpartition("/")[2]
                if name not in names or not info.isreg() or info.issparse():
                    continue
                if info.size > _MAX_BYTES:
                    raise UserError(f"{path}: {info.name}: {info.size} bytes, more than any batch; download it again")
                if name in pickles:
                    raise UserError(f"{path}: {name} comes twice; download the archive again")
                stream.seek(info.offset_data)
                pickles[name] = _dictionary(b"".join(stream.views(info.size)), f"{path}: {name}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole .tar.gz archive ({error}); download it again") from error
    return pickles


def _dictionary(data: bytes, where: str) -> dict[str, Any]:
    value = load_plain(data, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a dictionary, which a batch of CIFAR-10 is; give cifar-10-python.tar.gz")
    return {_text(key): entry for key, entry in value.items() if isinstance(key, bytes | str)}


def _class_names(meta: dict[str, Any], where: str) -> list[str]:
    names = meta.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{where}: no label_names, the names of the classes; give cifar-10-python.tar.gz")
    return [_text(name) for name in names]


def _batch(batch: dict[str, Any], classes: int, where: str) -> tuple[np.ndarray, list[int], list[str]]:
    """The images uint8 [n 3072], labels and file names of a batch."""
    data, labels, files = (batch.get(key) for key in ("data", "labels", "filenames"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * _SIDE * _SIDE,):
        raise UserError(f"{where}: its data is not bytes in rows of {3 * _SIDE * _SIDE}; give cifar-10-python.tar.gz")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise UserError(
            f"{where}: not a list of {plural(len(data), 'label')}, one for each image; download the archive again"
        )
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise UserError(f"{where}: a label is not a number from 0 to {classes - 1}; download the archive again")
    named = files if isinstance(files, list) and all(isinstance(name, bytes | str) for name in files) else []
    return data, labels, [_text(name) for name in named]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
