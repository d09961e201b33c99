"""The summary of an index: missing members and pickles are named."""

from __future__ import annotations

from pathlib import Path

from diffpipe.data.index.shard_set import load
from diffpipe.data.index.summary import describe, notes
from diffpipe.data.index.write_index import write_index
from tests.support.tars import write_shards, write_tar


def test_missing_members_are_reported_and_indexed(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "a.cls": b"0", "b.jpg": b"1", "b.cls": b"1"})
    write_tar(tmp_path / "1.tar", {"c.png": b"1", "d.webp": b"1", "d.cls": b"1", "e.json": b"{}", "e.cls": b"3"})
    write_index(tmp_path)
    assert notes(tmp_path) == [
        f"{tmp_path}: 1 sample of 5 has no image, the first of them e in 1.tar",
        f"{tmp_path}: 1 sample of 5 has no .cls, the first of them c in 1.tar",
    ]
    assert load(str(tmp_path)).total == 5
    write_tar(tmp_path / "1.tar", {"c.png": b"1", "c.cls": b"0"})
    write_index(tmp_path)
    assert notes(tmp_path) == []


def test_members_that_may_be_pickles_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "a.pth": b"2", "b.png": b"1", "b.pth": b"2", "b.meta.pkl": b"3"})
    write_index(tmp_path)
    note = "may hold pickles, which run code when loaded: diffpipe never reads them"
    assert [line for line in notes(tmp_path) if "pickles" in line] == [
        f"{tmp_path}: 1 .meta.pkl member {note}",
        f"{tmp_path}: 2 .pth members {note}",
    ]


def test_one_line_describes_the_folder_or_the_named_shards(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 3])
    write_index(tmp_path)
    sizes = [path.stat().st_size for path in paths]
    whole, second = str(describe(tmp_path, None)), str(describe(tmp_path, [paths[1].name]))
    assert whole.startswith(f"{tmp_path}: 2 shards, 5 samples, {sum(sizes)} bytes, fingerprint ")
    assert second.startswith(f"{tmp_path}: 1 shard, 3 samples, {sizes[1]} bytes, fingerprint ")
    assert second.endswith(load(str(paths[1])).fingerprint)
