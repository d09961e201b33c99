"""idx files come back pixel for pixel, and one that does not fit is named."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data import images, labels, load, number_of_classes
from diffpipe.data.packing.idx import IdxSource, read_idx
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import idx_bytes, idx_source
from tests.support.tars import random_pixels


def test_idx_files_come_back_pixel_for_pixel(digits: Path, tmp_path: Path) -> None:
    pack(idx_source(digits, "t10k", classes=["a", "b", "c", "d", "e"]), tmp_path / "out", shard_samples=16)
    shards = load(str(tmp_path / "out"))
    assert shards.counts.tolist() == [16, 16, 8]
    assert number_of_classes(shards) == 5
    keys = [int(shards.sample(s, i).key) for s in range(3) for i in range(int(shards.counts[s]))]
    assert sorted(keys) == list(range(40))
    assert keys != sorted(keys)
    assert np.array_equal(images(shards, range(40), None, 1)[:, 0].numpy(), random_pixels(1, (40, 6, 5))[keys])
    assert labels(shards, range(40)).tolist() == [key % 4 for key in keys]


def test_idx_files_that_do_not_fit_are_named(digits: Path, tmp_path: Path) -> None:
    pictures, numbers = digits / "train-images-idx3-ubyte.gz", digits / "train-labels-idx1-ubyte"
    with pytest.raises(UserError, match=r"labels-idx1.*3 dimensions"):
        read_idx(numbers, 3)
    with pytest.raises(UserError, match="only 3 class names"):
        IdxSource(pictures, numbers, ["a", "b", "c"])
    with pytest.raises(UserError, match="without labels"):
        IdxSource(pictures, None, ["a"])
    bad = tmp_path / "bad"
    bad.write_bytes(idx_bytes(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(UserError, match="39 labels for 40 images"):
        IdxSource(pictures, bad)
    bad.write_bytes(numbers.read_bytes()[:-1])
    with pytest.raises(UserError, match="bad: has 47 bytes, but its header says 48"):
        read_idx(bad, 1)
    bad.write_bytes(pictures.read_bytes()[:-20])
    with pytest.raises(UserError, match="bad: cannot be read"):
        read_idx(bad, 3)
    with pytest.raises(UserError, match="none: cannot be read"):
        read_idx(tmp_path / "none", 1)


def test_a_header_of_nothing_or_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    for shape in [(4, 0, 8), (0, 2**32 - 1, 2**32 - 1)]:
        path.write_bytes(b"\0\0\x08\x03" + struct.pack(">III", *shape))
        with pytest.raises(UserError, match="which is nothing; give another file"):
            read_idx(path, 3)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 2**20, 2**6, 2**6) + bytes(1000)))
    with pytest.raises(UserError, match="its header says 4294967296 bytes, more than images compress to"):
        read_idx(path, 3)


def test_no_more_is_decompressed_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 1, 2, 2) + bytes(200 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="has 21 bytes, but its header says 20"):
            read_idx(path, 3)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
