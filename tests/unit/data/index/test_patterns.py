"""Local tars are found by path, folder, glob and brace pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data.index.patterns import expand_patterns, require_distinct
from diffpipe.data.index.shard_set import load
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from tests.support.tars import write_shards


def test_patterns_name_shards_in_order(tmp_path: Path) -> None:
    a, b, c = (str(path) for path in write_shards(tmp_path, [2, 3, 1]))
    write_index(tmp_path)
    assert load(str(tmp_path)).paths == [a, b, c]
    assert load(f"{tmp_path}/shard-00[12].tar").paths == [b, c]
    assert load(f"{tmp_path}/shard-{{000..001}}.tar").paths == [a, b]
    assert load([c, f"{tmp_path}/shard-{{001,000}}.tar"]).paths == [c, b, a]
    subset = load([c, a])
    assert (subset.total, subset.counts.tolist()) == (3, [1, 2])
    assert [subset.sample(shard, i).key for shard, n in enumerate((1, 2)) for i in range(n)] == [
        "00005",
        "00000",
        "00001",
    ]


def test_a_path_that_exists_is_not_a_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "a{0..1}[x].tar"
    odd.touch()
    assert expand_patterns(str(odd)) == [str(odd)]


def test_a_shard_named_twice_by_whatever_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar").symlink_to("a.tar")
    with pytest.raises(UserError, match=r"a\.tar is named twice; name each shard once"):
        expand_patterns(str(tmp_path))
    with pytest.raises(UserError, match=r"^http://h/a\.tar is named twice"):
        require_distinct(["http://u:${A}@h/a.tar?${B}"] * 2)


def test_patterns_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards are named"):
        expand_patterns([])
    for pattern in (tmp_path, tmp_path / "none.tar", tmp_path / "*.tar"):
        with pytest.raises(UserError, match="no such shards"):
            expand_patterns(str(pattern))


def test_a_folder_of_images_is_to_be_packed_first(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path}: holds images and no shards; pack them first: diffpipe pack"):
        expand_patterns(str(tmp_path))
