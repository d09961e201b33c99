from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.data import images, labels, load
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.pickles import load_plain
from diffpipe.errors import UserError
from tests.support.archives import (
    CIFAR_CLASSES,
    cifar_batch,
    cifar_pickles,
    cifar_pickles_of_python3,
    python2,
    write_cifar,
)


def test_the_test_archives_are_real_pickles() -> None:
    """So that the archive of the tests has the true format: Python 2's strings, numpy's old module names."""
    for files in (cifar_pickles(3), cifar_pickles_of_python3(3), cifar_pickles_of_python3(3, protocol=5)):
        for data in files.values():
            ours, theirs = load_plain(data, "here"), pickle.loads(data, encoding="bytes")
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert np.array_equal(ours[key], value)
                assert type(ours[key]) is type(value)
    assert b"cnumpy.core.multiarray\n_reconstruct" in cifar_pickles(3)["test_batch"]


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3, dtype=np.int8))]
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_any_order_come_back(array: np.ndarray, protocol: int) -> None:
    assert np.array_equal(load_plain(pickle.dumps(array, protocol), "here"), array)


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


class _Evil:
    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    word = f"touch {flag}".encode()
    evil = [pickle.dumps({b"data": _Evil(flag)}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    evil += [
        b"(S'" + word + b"'\nios\nsystem\n.",  # INST
        b'cbuiltins\neval\n(S\'__import__("os").system("' + word + b"\")'\ntR.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x01OK\0K\x01\x87RU\x04xxxxtR.",
        b"\x80\x04\x8c\x0fdiffpipe.errors\x8c\x09UserError\x93.",
        b"cnumpy\nload\n(S'" + str(flag).encode() + b"'\ntR.",
    ]
    pickle.loads(evil[2])
    assert flag.exists()  # what any other unpickler would have done
    flag.unlink()
    for data in evil:
        archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles(2) | {"data_batch_3": data})
        with pytest.raises(UserError, match=r"data_batch_3: its pickle would call .* nothing was run"):
            CifarSource(archive)
        assert not flag.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"Psomething\n.",
        b"\x80\x02\x82\x01.",
        pickle.dumps(np.array(["words"]), 2),
        pickle.dumps(np.zeros(3), 2),
        python2(np.zeros(4, np.uint8)).replace(b"J\x04\0\0\0", b"J\x05\0\0\0"),
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_a_pickle_of_other_objects_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="here: not a pickle of plain data"):
        load_plain(data, "here")


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.data())
def test_a_damaged_pickle_gives_data_or_a_user_error(data: st.DataObject) -> None:
    good = bytearray(python2({b"a": [1, b"x"], b"b": np.arange(3, dtype=np.uint8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(2, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        load_plain(bytes(good), "here")


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
