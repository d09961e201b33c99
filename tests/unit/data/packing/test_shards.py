"""Shards as a source: packed again byte for byte, or with a selection of their samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data import images, labels, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.errors import UserError
from diffpipe.resolution import square
from tests.support.archives import idx_source
from tests.support.tars import png, random_pixels, write_tar


def everything(folder: Path) -> dict[tuple[bytes, ...], int]:
    """Each sample's members, byte for byte, and how often it is there."""
    shards = load(str(folder))
    counts: dict[tuple[bytes, ...], int] = {}
    for shard, path in enumerate(shards.paths):
        data = Path(path).read_bytes()
        for i in range(int(shards.counts[shard])):
            members = shards.sample(shard, i).members
            row = tuple(e.encode() + data[m.offset : m.offset + m.size] for e, m in sorted(members.items()))
            counts[row] = counts.get(row, 0) + 1
    return counts


def test_shards_are_packed_again_byte_for_byte(digits: Path, tmp_path: Path) -> None:
    pack(idx_source(digits, classes=list("abcd")), tmp_path / "all", shard_samples=15)
    pack(ShardSource(load(str(tmp_path / "all"))), tmp_path / "again", seed=1)
    assert everything(tmp_path / "again") == everything(tmp_path / "all")
    pack(ShardSource(load(str(tmp_path / "all"))), tmp_path / "rest", leave_out=[2])
    rest = load(str(tmp_path / "rest"))
    assert rest.classes == list("abcd")
    assert labels(rest, range(rest.total)).bincount().tolist() == [10, 10, 0, 10]
    assert everything(tmp_path / "rest").items() <= everything(tmp_path / "all").items()
    pack(
        ShardSource(load(str(tmp_path / "all"))), tmp_path / "small", only=[0], encoding=Encoding(resolution=square(4))
    )
    assert images(load(str(tmp_path / "small")), range(10), None, 1).shape == (10, 1, 4, 4)


def test_shards_keep_their_other_members(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    rows = {f"{i}.{e}": data for i in range(3) for e, data in {"png": png(random_pixels(i)), "txt": b"words"}.items()}
    write_tar(tmp_path / "src" / "a.tar", rows)
    write_index(tmp_path / "src")
    source = ShardSource(load(str(tmp_path / "src")))
    assert source.labels is None
    pack(source, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(tmp_path / "src")
    with pytest.raises(UserError, match="--only needs labels"):
        pack(source, tmp_path / "more", only=[0])
