"""Arrays in a safetensors file: written in pieces, mapped, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from diffpipe.data.index.mmapped_safetensors import StreamedArray, map_arrays, verify_checksum, write_arrays

ARRAYS = {
    "b": np.arange(7, dtype=np.int64),
    "a": np.arange(5, dtype=np.uint8),
    "c": np.array([1, 2**32 - 1], dtype=np.uint32),
    "none": np.zeros(0, dtype=np.int64),
}


def columns() -> dict[str, StreamedArray]:
    return {name: StreamedArray(array.dtype, len(array), np.array_split(array, 3)) for name, array in ARRAYS.items()}


def test_pieces_give_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x", columns(), {"k": 'v \u00e9 "'})
    assert (tmp_path / "x").read_bytes() == save(ARRAYS, metadata={"k": 'v \u00e9 "'})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_arrays_are_mapped_read_only(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x", columns(), {"k": "v"})
    arrays, metadata = map_arrays(tmp_path / "x")
    assert metadata == {"k": "v"}
    assert arrays.keys() == ARRAYS.keys()
    with safe_open(str(tmp_path / "x"), framework="np") as file:
        for name, array in arrays.items():
            assert np.array_equal(array, file.get_tensor(name))
            assert array.dtype == ARRAYS[name].dtype
            assert not array.flags.owndata
            assert not array.flags.writeable


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def fails():
        yield np.zeros(2, dtype=np.int64)
        raise OSError("no space")

    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(OSError, match="no space"):
        write_arrays(tmp_path / "x", {"a": StreamedArray(np.dtype(np.int64), 4, fails())}, {})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@given(st.data())
def test_a_damaged_file_is_an_error_of_three_kinds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(save(ARRAYS, metadata={"k": "v"}))
    whole[data.draw(st.integers(0, 300))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), 5, 100, len(whole) - 1]))])
    try:
        arrays, _ = map_arrays(path)
    except (ValueError, KeyError, TypeError):
        return
    for array in arrays.values():  # what it says lies in the file can be read
        array.sum()


def test_a_checksum_is_the_last_array_and_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_arrays(path, columns(), {"k": "v"}, checksum=True)
    content = path.read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    arrays, _ = map_arrays(path)
    verify_checksum(path, arrays)
    assert load_file(path).keys() == arrays.keys() == {*ARRAYS, "sha256"}
    for byte in range(len(content)):
        damaged = bytearray(content)
        damaged[byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        try:
            arrays, _ = map_arrays(path)
            verify_checksum(path, arrays)
        except ValueError:
            continue
        assert arrays.keys() != {*ARRAYS, "sha256"}  # an array has another name: see check_arrays


def test_a_file_without_a_checksum_is_not_verified(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x", columns(), {})
    verify_checksum(tmp_path / "x", map_arrays(tmp_path / "x")[0])


@pytest.mark.parametrize(
    "offsets",
    [[[0, 8], [0, 8]], [[0, 8], [4, 12]], [[0, 8], [9, 17]], [[8, 16], [0, 7]], [[0, 8], [8, 17]], [[-8, 0], [0, 8]]],
)
def test_arrays_that_overlap_or_leave_a_gap_are_refused(tmp_path: Path, offsets: list[list[int]]) -> None:
    header: dict[str, object] = {"__metadata__": {}}
    for name, (begin, end) in zip("ab", offsets, strict=True):
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(ValueError, match=r"overlap|within the file"):
        map_arrays(tmp_path / "x")
