"""The CIFAR-10 archive comes back pixel for pixel, and an invalid one is named."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data import images, labels, load
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import (
    CIFAR_CLASSES,
    cifar_batch,
    cifar_pickles,
    cifar_pickles_of_python3,
    python2,
    write_cifar,
)


@pytest.mark.parametrize("files", [cifar_pickles(), cifar_pickles_of_python3(), cifar_pickles_of_python3(protocol=5)])
def test_the_cifar_archive_comes_back_pixel_for_pixel(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", files)
    for split, batches in {"train": [1, 2, 3, 4, 5] if len(files) > 3 else [1], "test": [6]}.items():
        source = CifarSource(archive, split)
        data = np.concatenate([cifar_batch(seed, 20)[b"data"] for seed in batches])
        pack(source, tmp_path / split)
        shards = load(str(tmp_path / split))
        keys = [int(shards.sample(0, i).key) for i in range(shards.total)]
        assert sorted(keys) == list(range(len(data)))
        assert np.array_equal(images(shards, range(len(data)), None, 3).numpy(), data.reshape(-1, 3, 32, 32)[keys])
        assert labels(shards, range(len(data))).tolist() == [key % 20 % 10 for key in keys]
        assert shards.classes == CIFAR_CLASSES
        assert source.names()[1] == f"automobile_s_{batches[0]:03d}001.png"


def test_an_invalid_cifar_archive_is_named(tmp_path: Path) -> None:
    path, files = tmp_path / "cifar-10-python.tar.gz", cifar_pickles(2)
    with pytest.raises(UserError, match="CIFAR-10 has train and test"):
        CifarSource(write_cifar(path, files), "valid")
    for lacking in ("data_batch_3", "batches.meta", "data_batch_1"):
        with pytest.raises(UserError, match=f"no {lacking} in it"):
            CifarSource(write_cifar(path, {name: data for name, data in files.items() if name != lacking}))
    for change, about in (
        ({b"data": np.zeros((2, 3000), np.uint8)}, "its data is not bytes in rows of 3072"),
        ({b"labels": [1]}, "not a list of 2 labels"),
        ({b"labels": [1, 10]}, "a label is not a number from 0 to 9"),
    ):
        broken = python2(cifar_batch(1, 2) | change)
        with pytest.raises(UserError, match=f"data_batch_1: {about}"):
            CifarSource(write_cifar(path, files | {"data_batch_1": broken}))
    path.write_bytes(write_cifar(path, files).read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a whole"):
        CifarSource(path)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_an_archive_of_gigabytes_in_a_few_bytes_is_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.size, info.type = 3 << 30, kind
    path = tmp_path / "cifar-10-python.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="a header of 3221225472 bytes"):
        CifarSource(path)


def test_keys_that_are_no_words_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    data = pickle.dumps({"label_names": ["a"], 1 << 300_000: 1}, 2)
    info = tarfile.TarInfo("batches.meta")
    info.size = len(data)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match="no data_batch_1 in it"):
        CifarSource(path)
