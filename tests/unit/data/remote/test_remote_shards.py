"""Remote shards from their URLs to batches."""

from __future__ import annotations

import itertools
import pickle
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.decode.latents import encoder
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index, write_remote_index
from diffpipe.data.loader.order import Order
from diffpipe.data.loader.reader import Reader
from diffpipe.data.remote import storage
from diffpipe.data.remote.cache import ShardCache
from diffpipe.errors import BadSampleError, UserError
from diffpipe.interfaces import Batch
from diffpipe.resolution import square
from tests.support.tars import png, random_pixels, write_shards, write_tar
from tests.support.web_server import Web, serving

COUNTS = [3, 4, 5, 2]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.02))
    write_shards(tmp_path / "web" / "a", COUNTS)
    write_index(tmp_path / "web" / "a")
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(str(tmp_path / "cache"))


def local(web: Web) -> ShardSet:
    return load(str(web.folder / "a"))


def names(shards: ShardSet) -> list[str]:
    return [path.rpartition("/")[2] for path in shards.paths]


def test_urls_name_shards_as_paths_do(web: Web, cache: ShardCache) -> None:
    folder = f"{web.url}/a"
    everything = [f"shard-00{i}.tar" for i in range(4)]
    for pattern in (folder, f"{folder}/", f"{folder}/*.tar", f"{folder}/shard-{{000..003}}.tar"):
        shards = load(pattern, cache=cache)
        assert names(shards) == everything
        assert shards.fingerprint == local(web).fingerprint
        assert shards.counts.tolist() == COUNTS
    assert names(load(f"{folder}/shard-00[12].tar", cache=cache)) == everything[1:3]
    both = load([f"{folder}/shard-003.tar", str(web.folder / "a" / "shard-000.tar")], cache=cache)
    assert names(both) == ["shard-003.tar", "shard-000.tar"]
    assert {request.path for request in web.requests} == {f"/a/{INDEX_NAME}"}  # nothing else is requested
    assert shards.paths[0] == f"{folder}/shard-000.tar"


def test_a_local_folder_may_hold_the_index_of_remote_shards(web: Web, tmp_path: Path, cache: ShardCache) -> None:
    (web.folder / "a" / INDEX_NAME).rename(tmp_path / "elsewhere")
    write_remote_index([f"{web.url}/a/shard-00{i}.tar" for i in range(4)], tmp_path / "here")
    for pattern, expected in (("", COUNTS), ("/*.tar", COUNTS), ("/shard-00{0,2}.tar", [3, 5])):
        shards = load(f"{tmp_path}/here{pattern}", cache=cache)
        assert shards.counts.tolist() == expected
        assert all(path.startswith(web.url) for path in shards.paths)
    sample = shards.sample(1, 0)
    assert Reader(shards).image(1, sample) == png(random_pixels(int(sample.key)))
    with pytest.raises(UserError, match=r"none\.tar is not in the index of"):
        load(f"{tmp_path}/here/none.tar", cache=cache)


def test_what_cannot_be_loaded_is_named_with_the_remedy(web: Web, cache: ShardCache) -> None:
    def refused(pattern: str | list[str], *words: str) -> None:
        with pytest.raises(UserError) as caught:
            load(pattern, cache=cache)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    refused(f"{web.url}/b", INDEX_NAME, "no such file", f"diffpipe index {web.url}/b --out")
    refused(f"{web.url}/a/none.tar", f"{web.url}/a/none.tar", "not in the index")
    refused([f"{web.url}/a", f"{web.url}/a/shard-001.tar"], "shard-001.tar", "twice")
    (web.folder / "a" / INDEX_NAME).write_bytes(b"rubbish")
    refused(f"{web.url}/a", f"{web.url}/a/{INDEX_NAME}", "not a readable index")


def test_secrets_reach_the_server_and_nothing_else(
    web: Web, cache: ShardCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    shards = load(f"{web.url}/a/shard-{{000..001}}.tar?token=${{TOKEN}}", cache=cache)
    reader = Reader(shards)
    reader.image(0, shards.sample(0, 0))
    assert {request.query for request in web.requests} == {"token=hunter2"}
    assert b"hunter2" not in pickle.dumps(reader)
    assert "hunter2" not in "".join([shards.listing, *shards.paths, *map(str, cache.folder.iterdir())])
    assert "TOKEN" not in "".join([shards.listing, *shards.paths])
    (web.folder / "a" / "shard-001.tar").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        reader.image(1, shards.sample(1, 0))
    assert "token" not in str(caught.value).lower()
    for named in (
        {"train": "https://h/?token=a"},
        {"train": "a", "test": "https://u:p@h/"},
        {"sources": [{"url": "https://u:p@h/"}]},
    ):
        with pytest.raises(ValueError, match="environment variable"):
            DataConfig.model_validate({"batch_size": 1, "resolution": 8, **named})


def test_members_are_read_and_only_what_is_read_is_fetched(web: Web, cache: ShardCache) -> None:
    shards, local_shards = load(f"{web.url}/a", cache=cache), local(web)
    reader = Reader(shards)
    for shard, i in ((2, 0), (1, 3), (2, 4)):
        assert reader.image(shard, shards.sample(shard, i)) == Reader(local_shards).image(
            shard, local_shards.sample(shard, i)
        )
    tars = [request.path for request in web.requests if request.path.endswith(".tar")]
    assert tars == ["/a/shard-002.tar", "/a/shard-001.tar"]
    shutil.rmtree(web.folder / "a")
    unpickled = pickle.loads(pickle.dumps(reader))
    assert unpickled.image(2, shards.sample(2, 1)) == reader.image(2, shards.sample(2, 1))  # from the cache


def test_a_shard_damaged_in_the_cache_is_fetched_again(web: Web, cache: ShardCache) -> None:
    shards = load(f"{web.url}/a", cache=cache)
    reader, sample = Reader(shards), shards.sample(0, 0)
    good = reader.image(0, sample)
    remote = shards.shards[0].remote
    assert remote is not None
    path = cache.folder / remote.file.name
    data = path.read_bytes()
    at = sample.members["png"].offset
    path.write_bytes(data[:at] + b"?" + data[at + 1 :])
    assert reader.image(0, sample) == good
    assert path.read_bytes() == data
    member = sample.members["png"]
    with pytest.raises(BadSampleError, match="diffpipe index http"):  # the index itself is wrong
        reader.read(0, sample._replace(members={"png": member._replace(crc32=member.crc32 ^ 1)}), "png")


def test_a_reader_closes_files_that_were_evicted(web: Web, cache: ShardCache) -> None:
    shards = load(f"{web.url}/a", cache=cache)
    cache.limit = max(shard.bytes for shard in shards.shards) + (web.folder / "a" / INDEX_NAME).stat().st_size
    reader = Reader(shards)
    for shard in [0, 1, 2, 3, 0, 1]:
        sample = shards.sample(shard, 0)
        assert reader.image(shard, sample) == png(random_pixels(int(sample.key)))
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    gone = [place for place in held if str(cache.folder) in place and place.endswith("(deleted)")]
    assert len(gone) <= 2  # those that were evicted for the last one


def test_prefetched_shards_are_fetched_before_they_are_read(web: Web, cache: ShardCache) -> None:
    shards = load(f"{web.url}/a", cache=cache)
    web.requests.clear()
    reader = Reader(shards)
    reader.prefetch([2, 1, 2], due=True)
    reader.prefetch([1, 3], due=False)
    deadline = time.monotonic() + 60
    while len(list(cache.folder.glob("*"))) < 5 or list(cache.folder.glob("*.part")):  # three, the index, and the lock
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sorted(request.path for request in web.requests) == [f"/a/shard-00{i}.tar" for i in (1, 2, 3)]
    for shard in (1, 2, 3):
        reader.image(shard, shards.sample(shard, 0))
    assert len(web.requests) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_local_shards_whatever_the_server_does(web: Web, cache: ShardCache, workers: int) -> None:
    web.drop = 3
    config = DataConfig(
        train="unused",
        batch_size=4,
        resolution=square(8),
        channels=1,
        labels=True,
        flip=True,
        crop="random",
        workers=workers,
        shuffle_window=4,
    )

    def take(shards: ShardSet) -> list[Batch]:
        stream = batches(config, shards, 7, start=8)
        taken = list(itertools.islice(stream, 12))
        stream.close()
        return taken

    shards = load(f"{web.url}/a", cache=cache)
    for ours, theirs in zip(take(shards), take(local(web)), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert ours.keys == theirs.keys
    for i, shard in enumerate(shards.shards):
        answers = web.asked(f"shard-00{i}.tar")
        assert sum(request.start + request.sent == shard.bytes for request in answers) == 1  # the rest broke off


def test_the_shards_of_the_next_two_windows_are_fetched_and_no_others(
    web: Web, cache: ShardCache, tmp_path: Path
) -> None:
    write_shards(tmp_path / "web" / "b", [4] * 40)
    write_index(tmp_path / "web" / "b")
    shards = load(f"{web.url}/b", cache=cache)
    config = DataConfig(train="unused", batch_size=4, resolution=square(8), channels=1, workers=0, shuffle_window=16)
    stream = batches(config, shards, 5)
    order = Order(5, shards.counts, config.interleave, config.shuffle_window)
    for step in range(3):
        next(stream)
        soon = set(order.at(np.arange(4 * step + 4 + 2 * 16))[0].tolist())
        assert 8 <= len(soon) < 40
        deadline = time.monotonic() + 60
        while (there := {path for path in shards.paths if web.asked(path.rpartition("/")[2])}) != {
            shards.paths[shard] for shard in soon
        }:
            assert time.monotonic() < deadline, there
            time.sleep(0.01)
    stream.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changed_on_the_server_is_refused(web: Web, cache: ShardCache, workers: int) -> None:
    shards = load(f"{web.url}/a", cache=cache)
    for path in (web.folder / "a").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    config = DataConfig(train="unused", batch_size=4, resolution=square(8), channels=1, workers=workers)
    with pytest.raises(UserError, match=r"shard-00\d\.tar: not the file that was indexed: its sha256 is another"):
        next(batches(config, shards, 0))


def test_remote_latents_name_their_encoder(web: Web, cache: ShardCache, tmp_path: Path) -> None:
    (web.folder / "l").mkdir()
    write_tar(web.folder / "l" / "x.tar", {"a.latents.npy": b"1"})
    write_index(web.folder / "l")
    shards = load(f"{web.url}/l", cache=cache)
    with pytest.raises(UserError, match=f"{web.url}/l/codec.json: it does not name the checkpoint"):
        encoder(shards)
    (web.folder / "l" / "codec.json").write_text('{"sha256": "abc"}')
    assert encoder(shards) == "abc"
    web.failing = [503] * 3
    with pytest.raises(UserError, match="tried 3 times"):
        encoder(shards)


def test_a_lost_server_ends_the_stream_with_one_sentence(web: Web, cache: ShardCache) -> None:
    shards = load(f"{web.url}/a", cache=cache)
    web.failing = [503] * 1000
    config = DataConfig(train="unused", batch_size=4, resolution=square(8), channels=1, workers=0)
    with pytest.raises(UserError, match=r"shard-00\d\.tar: cannot be read \(503 Service Unavailable\), tried 3 times"):
        next(batches(config, shards, 0))
