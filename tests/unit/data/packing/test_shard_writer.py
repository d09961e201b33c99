"""Tars of samples, read back by tarfile and webdataset."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from diffpipe.data.packing.shard_writer import ShardWriter, TarWriter

SAMPLES = {f"{i:08d}": {"png": bytes([i]) * 600, "cls": str(i).encode()} for i in range(5)}


def write(folder: Path) -> list[Path]:
    folder.mkdir()
    shards = ShardWriter(folder, "part", 2)
    for key, members in SAMPLES.items():
        shards.add(key, members)
    shards.close()
    assert shards.samples == 5
    return sorted(folder.iterdir())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_the_shards_of_a_folder_are_filled_one_after_the_other(tmp_path: Path) -> None:
    paths = write(tmp_path / "a")
    assert [path.name for path in paths] == [f"part-{i:06d}.tar" for i in range(3)]
    rows = [list(WebDataset(str(path), shardshuffle=False, empty_check=False)) for path in paths]
    assert [len(row) for row in rows] == [2, 2, 1]
    assert {row["__key__"]: {"png": row["png"], "cls": row["cls"]} for shard in rows for row in shard} == SAMPLES


def test_the_same_samples_give_the_same_bytes_without_owner_and_time(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with tarfile.open(first[0]) as tar:
        assert {(info.uid, info.gid, info.uname, info.mtime) for info in tar} == {(0, 0, "", 0)}


def test_a_long_key_needs_the_gnu_format(tmp_path: Path) -> None:
    key = "k" * 150
    with TarWriter(tmp_path / "a.tar", tarfile.GNU_FORMAT) as tar:
        tar.add(key, {"png": b"1"})
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [f"{key}.png"]
    with TarWriter(tmp_path / "b.tar") as tar, pytest.raises(ValueError, match="name is too long"):
        tar.add(key, {"png": b"1"})
