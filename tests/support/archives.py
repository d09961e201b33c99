"""Archives of images for the tests, in the formats that people publish."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from diffpipe.data.packing.idx import IdxSource, find_idx
from tests.support.tars import png, random_pixels

PHOTOS = {
    "cat/1.png": png(random_pixels(1)),
    "cat/old/2.png": png(random_pixels(2)),
    "dog/1.png": png(random_pixels(3)),
    "dog/notes.txt": b"words",
}
"""An image folder of two classes, and a file that is no image."""

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# What `pickle.dumps(np.zeros(0, "u1"), 2)` of Python 2 and its numpy begins with, and the state of its dtype.
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
_BYTE = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def python2(value: Any) -> bytes:
    """Protocol 2 as Python 2 wrote it, of dicts, lists, ints, byte strings and arrays of bytes."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
    return _ARRAY + b"(K\x01" + shape + _BYTE + b"\x89" + _python2(value.tobytes()) + b"tb"


def cifar_batch(seed: int, n: int) -> dict[bytes, Any]:
    """A batch of CIFAR-10 with noise for images: their labels are 0, 1, 2 … and begin at 0 again after 9."""
    data = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    names = [f"{CIFAR_CLASSES[i % 10]}_s_{seed:03d}{i:03d}.png".encode() for i in range(n)]
    about = f"batch {seed}".encode()
    return {b"batch_label": about, b"labels": [i % 10 for i in range(n)], b"data": data, b"filenames": names}


def cifar_pickles(n: int = 20, batches: int = 5) -> dict[str, bytes]:
    """The files of the archive, as Python 2 wrote them."""
    meta = {b"num_cases_per_batch": n, b"label_names": [name.encode() for name in CIFAR_CLASSES], b"num_vis": 3072}
    names = [*(f"data_batch_{i}" for i in range(1, batches + 1)), "test_batch"]
    return {"batches.meta": python2(meta)} | {name: python2(cifar_batch(seed, n)) for seed, name in enumerate(names, 1)}


def cifar_pickles_of_python3(n: int = 20, protocol: int = 2) -> dict[str, bytes]:
    """The same, as somebody would write it today."""
    meta = {b"num_cases_per_batch": n, b"label_names": [name.encode() for name in CIFAR_CLASSES], b"num_vis": 3072}
    batches = {"data_batch_1": cifar_batch(1, n), "test_batch": cifar_batch(6, n), "batches.meta": meta}
    return {name: pickle.dumps(batch, protocol) for name, batch in batches.items()}


def write_cifar(path: Path, files: dict[str, bytes]) -> Path:
    """The archive of these files, with the page that the published one has beside them."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in {**files, "readme.html": b"<html></html>"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def by_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx file of an array of bytes, as MNIST's page describes the format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_source(folder: Path, split: str = "train", **options: Any) -> IdxSource:
    """The images and labels of a split of the idx files in a folder."""
    files = find_idx(folder, split)
    assert files is not None
    return IdxSource(*files, **options)
