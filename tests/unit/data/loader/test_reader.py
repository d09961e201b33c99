"""The reader of members: images and labels, changed bytes, and a bounded number of open files."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest

from diffpipe.data.index.shard_set import ShardSet, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_shards, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    write_shards(tmp_path, [2] * 6)
    write_index(tmp_path)
    return load(str(tmp_path))


def open_files() -> int:
    """How many tars this process has open: connections of other tests come and go."""
    return sum(link.is_symlink() and link.readlink().suffix == ".tar" for link in Path("/proc/self/fd").iterdir())


def test_images_and_labels_are_read(shards: ShardSet) -> None:
    reader = Reader(shards)
    for shard in range(6):
        for i in range(2):
            number = 2 * shard + i
            sample = shards.sample(shard, i)
            assert sample.key == f"{number:05d}"
            assert reader.image(shard, sample) == png(random_pixels(number))
            assert reader.label(shard, sample) == number % 3


def test_any_changed_byte_of_a_member_is_noticed_when_it_is_read(shards: ShardSet, tmp_path: Path) -> None:
    sample = shards.sample(1, 1)
    member = sample.members["png"]
    path = Path(shards.paths[1])
    data = path.read_bytes()
    for at in (member.offset, member.offset + member.size // 2, member.offset + member.size - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        changed = load(str(tmp_path), verify_limit=0)
        reader = Reader(changed)
        message = f"{path}: {sample.key}.png was changed after indexing"
        with pytest.raises(UserError, match=re.escape(message)):
            reader.image(1, sample)
        reader.image(1, changed.sample(1, 0))
    path.write_bytes(data[: member.offset + 3])
    with pytest.raises(UserError, match="changed after indexing"):
        Reader(shards).image(1, sample)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Reader(shards).image(1, sample)


def test_open_files_are_bounded_and_closed(shards: ShardSet) -> None:
    before = open_files()
    reader = Reader(shards, open_files=3)
    for shard in [0, 1, 2, 3, 4, 5, 0, 3]:
        reader.image(shard, shards.sample(shard, 0))
        assert open_files() <= before + 3
    del reader
    assert open_files() == before


def test_a_pickled_or_forked_reader_reads(shards: ShardSet) -> None:
    reader = Reader(shards)
    sample = shards.sample(0, 0)
    expected = reader.image(0, sample)
    assert pickle.loads(pickle.dumps(reader)).image(0, sample) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if reader.image(0, sample) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.image(0, sample) == expected


def test_missing_members_and_invalid_labels_are_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": b"1", "b.txt": b"1", "b.cls": b"cat", "c.cls": b"-1"})
    write_index(tmp_path)
    shards = load(str(path))
    reader = Reader(shards)
    with pytest.raises(UserError, match=re.escape(f"{path}: a has no .cls")):
        reader.label(0, shards.sample(0, 0))
    with pytest.raises(UserError, match=re.escape(f"{path}: b has no image")):
        reader.image(0, shards.sample(0, 1))
    with pytest.raises(UserError, match=re.escape(f"{path}: b.cls is not an integer")):
        reader.label(0, shards.sample(0, 1))
    with pytest.raises(UserError, match=re.escape(f"{path}: c.cls is not an integer")):
        reader.label(0, shards.sample(0, 2))
