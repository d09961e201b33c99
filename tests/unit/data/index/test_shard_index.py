"""The index at scale: opened without being read, shared by processes, and refused when inconsistent."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import time
import tracemalloc
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from diffpipe.data import load
from diffpipe.data.index import shard_index
from diffpipe.data.index.mmapped_safetensors import StreamedArray, write_arrays
from diffpipe.data.index.shard_index import INDEX_NAME, Member, Sample, ShardIndex
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from tests.support.tars import write_shards, write_tar

SAMPLES, SHARDS = 1_000_000, 1000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of a million samples of two members, in a thousand shards; key i is i in nine digits."""
    path = tmp_path_factory.mktemp("large") / INDEX_NAME
    samples = SAMPLES // SHARDS
    numbers = np.arange(SAMPLES)
    digits = (numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8)
    arrays = {
        "key.bytes": digits.reshape(-1),
        "key.end": 9 * (numbers + 1),
        "sample.first_member": 2 * np.arange(SAMPLES + 1),
        "member.extension": np.tile(np.array([0, 1], dtype=np.uint8), SAMPLES),
        "member.offset": np.tile(512 + 1024 * np.arange(2 * samples), SHARDS),
        "member.size": np.tile(np.array([1, 500]), SAMPLES),
        "member.crc32": np.arange(2 * SAMPLES, dtype=np.uint32),
    }
    members = {"cls": samples, "png": samples}
    row = {
        "bytes": 2048 * samples + 1024,
        "sha256": "0" * 64,
        "samples": samples,
        "members": members,
        "classes_count": 1,
    }
    shards = [{"name": f"{i:06d}.tar", **row} for i in range(SHARDS)]
    head = {"version": 1, "shards": shards, "extensions": ["cls", "png"], "classes": None}
    columns = {name: StreamedArray(array.dtype, len(array), [array]) for name, array in arrays.items()}
    write_arrays(path, columns, {"diffpipe": json.dumps(head)})
    return path


def expected(i: int) -> Sample:
    at = 512 + 2048 * (i % (SAMPLES // SHARDS))
    return Sample(f"{i:09d}", {"cls": Member(at, 1, 2 * i), "png": Member(at + 1024, 500, 2 * i + 1)})


def test_a_million_samples_are_opened_in_a_second_and_take_no_memory(large: Path) -> None:
    start = time.process_time()
    table = ShardIndex(str(large))
    assert table.sample(SAMPLES - 1) == expected(SAMPLES - 1)
    assert time.process_time() - start < 1
    tracemalloc.start()
    try:
        table = ShardIndex(str(large))
        for i in range(0, SAMPLES, 1009):
            assert table.sample(i) == expected(i)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # of a file of 79 MB
    finally:
        tracemalloc.stop()
    assert len(pickle.dumps(table)) < 500


def test_many_samples_are_looked_up_at_once(large: Path) -> None:
    table = ShardIndex(str(large))
    samples = np.array([0, SAMPLES - 1, 1, 77_777, 1])
    expected_samples = [expected(i) for i in samples.tolist()]
    assert table.keys(samples) == [sample.key for sample in expected_samples]
    for extensions in (("png",), ("cls",), ("jpg", "png"), ("cls", "png")):
        first = next(e for e in extensions if e != "jpg")
        assert np.array_equal(
            np.stack(table.locations(samples, extensions), 1), [s.members[first] for s in expected_samples]
        )
    assert table.locations(samples, ("jpg",)).size.tolist() == [-1] * 5


def test_each_sample_gives_the_first_extension_that_it_has(tmp_path: Path) -> None:
    for number in (1, 2):
        members = {"ä.jpg": b"12", "ä.png": b"3", "b.cls": b"456", "c.png": b"7", "d.x": b"8"}
        write_tar(tmp_path / f"{number}.tar", members)
    write_index(tmp_path)
    (tmp_path / "other").mkdir()
    write_tar(tmp_path / "other" / "0.tar", {"e.x": b"1", "e.jpg": b"90"})
    write_index(tmp_path / "other")
    shards = load([str(tmp_path / "1.tar"), str(tmp_path / "other"), str(tmp_path / "2.tar")])
    where = np.array([2, 0, 1, 0, 2, 0]), np.array([0, 1, 0, 2, 3, 0])
    assert shards.keys(*where) == ["ä", "b", "e", "c", "d", "ä"]
    locations = shards.locations(*where, ("png", "jpg"))
    assert locations.size.tolist() == [1, -1, 2, 1, -1, 1]
    for shard, i, *place in np.stack([*where, *locations], 1).tolist():
        members = shards.sample(shard, i).members
        assert place[1] == -1 or Member(*place) == members.get("png", members.get("jpg"))


def read_all(table: ShardIndex, connection: Connection) -> None:
    """Touch every page of the index, wait for the others, and return its share of this process's memory, in kB."""
    for array in (table._key_bytes, table._key_end, table._first_member, table._extension, *table._location):
        array.sum()
    connection.send("read")
    connection.recv()
    memory = {"Pss": 0, "Private_Dirty": 0}
    in_index = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_index = line.endswith(table.path)
        elif in_index and line.partition(":")[0] in memory:
            memory[line.partition(":")[0]] += int(line.split()[1])
    connection.send(memory)
    connection.recv()


def test_the_processes_of_a_node_share_one_index(large: Path) -> None:
    table = ShardIndex(str(large))
    pairs = []
    for method in ("fork", "fork", "spawn"):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context(method).Process(target=read_all, args=(table, theirs))  # type: ignore[attr-defined]
        process.start()
        pairs.append((process, ours))
    for message in ("measure", None):
        answers = [connection.recv() for _, connection in pairs]
        for _, connection in pairs:
            connection.send(message)
    for process, _ in pairs:
        process.join()
        assert process.exitcode == 0
    assert sum(process["Private_Dirty"] for process in answers) == 0
    size = large.stat().st_size / 1024
    assert (
        0.7 * size < sum(process["Pss"] for process in answers) < 1.05 * size
    )  # all processes share the pages of one file


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key.end", lambda array: array[:-1]),
        ("sample.first_member", lambda array: array[:-1]),
        ("member.crc32", lambda array: array[1:]),
        ("key.bytes", lambda array: array[:-1]),
        ("member.offset", None),
    ],
)
def test_an_index_with_inconsistent_arrays_is_refused(tmp_path: Path, name: str, change) -> None:
    write_shards(tmp_path, [3])
    write_index(tmp_path)
    path = tmp_path / INDEX_NAME
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    save_file(arrays, path, metadata)
    with pytest.raises(UserError, match=f"{path}: not a readable index .* diffpipe index {tmp_path}"):
        ShardIndex(str(path))


def test_an_index_of_a_later_version_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    write_index(tmp_path)
    path = tmp_path / INDEX_NAME
    path.write_bytes(path.read_bytes().replace(rb"\"version\": 1", rb"\"version\": 9"))
    with pytest.raises(UserError, match="index version 9, which this diffpipe does not read; write it again"):
        ShardIndex(str(path))


def test_the_format_is_that_of_the_indices_in_this_repository(tmp_path: Path) -> None:
    there = Path(__file__).parents[4] / "configs" / "fashion_mnist" / "shards" / "test"
    for tar in there.glob("*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    write_index(tmp_path, classes=ShardIndex(str(there / INDEX_NAME)).classes)
    assert (tmp_path / INDEX_NAME).read_bytes() == (there / INDEX_NAME).read_bytes()


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [2])
    write_index(tmp_path)
    path = tmp_path / INDEX_NAME
    content = path.read_bytes()
    for byte in range(len(content)):
        damaged = bytearray(content)
        damaged[byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"not a readable index|index version \d+, which"):
            ShardIndex(str(path))


def test_an_index_of_before_the_checksum_goes_on_loading(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    write_index(tmp_path)
    path = tmp_path / INDEX_NAME
    new = ShardIndex(str(path)).sample(2)
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file({name: array for name, array in arrays.items() if name != "sha256"}, path, metadata)
    assert ShardIndex(str(path)).sample(2) == new
    assert load(str(tmp_path)).total == 3


def test_a_worker_need_not_verify_the_index_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [3])
    write_index(tmp_path)
    pickled = pickle.dumps(ShardIndex(str(tmp_path / INDEX_NAME)))
    monkeypatch.setattr(shard_index, "verify_checksum", None)
    assert pickle.loads(pickled).sample(2).members.keys() == {"png", "cls"}
