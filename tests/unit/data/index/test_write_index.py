"""The index is written wholly or not at all, and keeps the names of the classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffpipe.data.index import parallel_scan
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load, number_of_classes
from diffpipe.data.index.write_index import write_index, write_remote_index
from diffpipe.errors import UserError
from tests.support.tars import write_shards


def test_a_failed_index_leaves_the_old_one(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    write_index(tmp_path)
    before = (tmp_path / INDEX_NAME).read_bytes()
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"bad\.tar"):
        write_index(tmp_path)
    assert (tmp_path / INDEX_NAME).read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["bad.tar", INDEX_NAME, "shard-000.tar"]
    (tmp_path / "bad.tar").unlink()
    write_index(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [INDEX_NAME, "shard-000.tar"]
    assert (tmp_path / INDEX_NAME).read_bytes() == before


def test_classes_are_counted_and_their_names_outlive_a_new_index(tmp_path: Path) -> None:
    write_shards(tmp_path, [4, 4], classes=3)
    write_index(tmp_path)
    assert load(str(tmp_path)).classes is None
    assert number_of_classes(load(str(tmp_path))) == 3
    with pytest.raises(UserError, match="only 2 class names"):
        write_index(tmp_path, classes=["a", "b"])
    write_index(tmp_path, classes=["a", "b", "c", "d"])
    write_index(tmp_path)
    assert load(str(tmp_path)).classes == ["a", "b", "c", "d"]
    assert number_of_classes(load(str(tmp_path))) == 4


def test_remote_shards_of_several_folders_or_over_local_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=re.escape("http://h/a and http://h/b: an index covers the shards of one folder")
    ):
        write_remote_index(["http://h/a/x.tar?${A}", "http://h/b/x.tar"], tmp_path / "out")
    with pytest.raises(UserError, match=r"http://h/x\.tar is named twice"):
        parallel_scan.remote_shards(["http://h/x.tar", "http://h/{x,y}.tar"])
    write_shards(tmp_path, [1])
    with pytest.raises(UserError, match="holds tars itself"):
        write_remote_index(["http://h/x.tar"], tmp_path)
