"""Pickles of plain data and arrays; a pickle of anything else is refused and never run."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.pickles import load_plain
from diffpipe.errors import UserError
from tests.support.archives import (
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


def test_a_pickle_of_a_few_bytes_takes_little_memory_and_time() -> None:
    assert load_plain(b"\x80\x02Nr\xff\xff\xff\x0f.", "x") is None  # the value of number 2^28
    value: list[object] = [0]
    for _ in range(30):
        value = [value] * 10
    with pytest.raises(UserError, match=r"^x: not a pickle of plain data and arrays \(more than 1000000 values\)"):
        load_plain(pickle.dumps(value), "x")
