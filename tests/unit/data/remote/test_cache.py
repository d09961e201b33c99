"""The cache of remote shards: each file fetched once, within a limit, and never damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.remote import storage
from diffpipe.data.remote.cache import RemoteShard, ShardCache
from diffpipe.data.remote.download import CachedFile
from diffpipe.errors import UserError
from diffpipe.files import private_folder, sha256_of
from tests.support.planted import plant, without_attributes
from tests.support.web_server import Web, serving

SIZE = 1000


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.02))
    (tmp_path / "web").mkdir()
    with serving(tmp_path / "web") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(str(tmp_path / "cache"))


def put(web: Web, name: str, data: bytes | None = None) -> CachedFile:
    data = os.urandom(SIZE) if data is None else data
    (web.folder / name).parent.mkdir(exist_ok=True)
    (web.folder / name).write_bytes(data)
    return CachedFile(f"{web.url}/{name}", len(data), hashlib.sha256(data).hexdigest())


def content(cache: ShardCache, item: CachedFile) -> bytes:
    file = cache.open(item)
    try:
        return os.pread(file, item.bytes + 1, 0)
    finally:
        os.close(file)


def kept(cache: ShardCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name != "lock")


def age(cache: ShardCache, item: CachedFile, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.folder / item.name, (then, then))


def test_a_file_is_fetched_once_and_its_name_has_no_secret(web: Web, cache: ShardCache) -> None:
    item = put(web, "secret.tar")
    for _ in range(3):
        assert content(cache, item) == (web.folder / "secret.tar").read_bytes()
    assert len(web.requests) == 1
    (name,) = kept(cache)
    assert re.fullmatch("[0-9a-f]{64}", name)


def test_files_of_one_name_in_two_folders_are_two_files(web: Web, cache: ShardCache) -> None:
    train, test = put(web, "train/0.tar"), put(web, "test/0.tar")  # webdataset's FileCache mixes them up
    assert content(cache, train) == (web.folder / "train/0.tar").read_bytes()
    assert content(cache, test) == (web.folder / "test/0.tar").read_bytes()


def test_the_default_folder_is_the_users_or_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFPIPE_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert ShardCache().folder == Path("/home/me/.cache/diffpipe/shards")
    monkeypatch.setenv("DIFFPIPE_CACHE", "/scratch/shards")
    assert ShardCache().folder == Path("/scratch/shards")
    assert ShardCache("/data").folder == Path("/data")


def test_a_file_that_is_not_the_indexed_one_is_refused_and_not_kept(web: Web, cache: ShardCache) -> None:
    item = put(web, "a.tar")
    for other, words in ((b"x" * SIZE, "sha256"), (b"x" * 900, "900 bytes, not 1000"), (b"x" * 1100, "1100 bytes")):
        (web.folder / "a.tar").write_bytes(other)
        with pytest.raises(UserError, match=words) as caught:
            content(cache, item)
        assert f"{web.url}/a.tar" in str(caught.value)
        assert "diffpipe index" in str(caught.value)
        assert kept(cache) == []
    (web.folder / "a.tar").unlink()
    with pytest.raises(UserError, match="no such file"):
        content(cache, item)


def test_the_download_of_another_process_is_completed(web: Web, cache: ShardCache) -> None:
    item = put(web, "a.tar")
    data = (web.folder / "a.tar").read_bytes()
    part = cache.folder / f"{item.name}.{SIZE}.part"
    for begun, starts in ((data[:700], [700]), (data, []), (b"rubbish", [7, 0]), (b"x" * SIZE, [0]), (2 * data, [0])):
        cache.folder.mkdir(exist_ok=True)
        cache.drop(item)
        web.requests.clear()
        part.write_bytes(begun)
        assert content(cache, item) == data
        assert [request.start for request in web.requests] == starts
        assert kept(cache) == [item.name]


def test_a_failed_download_is_kept_for_the_next_attempt(web: Web, cache: ShardCache) -> None:
    item = put(web, "a.tar", os.urandom(4_000_000))
    web.drop, web.bodies = 1000, 1
    data = (web.folder / "a.tar").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "WAITS", ())
        with pytest.raises(UserError, match="tried 1 time;"):
            cache.open(item)
    assert content(cache, item) == data
    first, second = web.requests
    assert (first.start, first.sent) == (0, 2_000_000)
    assert 1_000_000 < second.start <= 2_000_000
    assert kept(cache) == [item.name]


def test_the_limit_holds_and_the_least_recently_used_go_first(web: Web, cache: ShardCache) -> None:
    cache.limit = 3 * SIZE + 500
    items = [put(web, f"{i}.tar") for i in range(5)]
    for i in range(3):
        content(cache, items[i])
        age(cache, items[i], 100 - i)
    content(cache, items[0])  # used again
    content(cache, items[3])
    assert kept(cache) == sorted(items[i].name for i in (0, 2, 3))
    content(cache, items[4])
    assert kept(cache) == sorted(items[i].name for i in (0, 3, 4))
    with pytest.raises(UserError, match=r"data\.cache_bytes"):
        content(cache, put(web, "large.tar", b"x" * 4 * SIZE))
    assert kept(cache) == sorted(items[i].name for i in (0, 3, 4))


def test_an_open_file_stays_readable_after_eviction(web: Web, cache: ShardCache) -> None:
    cache.limit = SIZE
    first, second = put(web, "a.tar"), put(web, "b.tar")
    file = cache.open(first)
    content(cache, second)
    assert kept(cache) == [second.name]
    assert os.pread(file, SIZE, 0) == (web.folder / "a.tar").read_bytes()
    os.close(file)


def test_partial_downloads_are_evicted_too(web: Web, cache: ShardCache) -> None:
    cache.limit = 2 * SIZE
    cache.folder.mkdir()
    gone, item = put(web, "a.tar"), put(web, "b.tar")
    (cache.folder / f"{gone.name}.{2 * SIZE}.part").write_bytes(b"x")
    assert len(content(cache, item)) == SIZE
    assert kept(cache) == [item.name]


def test_prefetching_evicts_no_recently_used_file(web: Web, cache: ShardCache) -> None:
    cache.limit = 2 * SIZE
    old, new, ahead = (put(web, f"{i}.tar") for i in range(3))
    content(cache, old)
    content(cache, new)
    cache.fetch(ahead)
    assert kept(cache) == sorted([old.name, new.name])
    age(cache, old, 1000)
    cache.fetch(ahead)
    assert kept(cache) == sorted([new.name, ahead.name])
    assert len(web.asked("2.tar")) == 1


def test_many_threads_fetch_each_file_once(web: Web, cache: ShardCache) -> None:
    web.rate = 1e5
    items = [put(web, f"{i}.tar", os.urandom(20_000)) for i in range(3)]
    digests: list[str] = []

    def work(start: int) -> None:
        digests.extend(hashlib.sha256(content(cache, item)).hexdigest() for item in items[start:] + items[:start])

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(digests) == sorted(9 * [item.sha256 for item in items])
    assert len(web.requests) == 3


def test_the_limit_holds_while_many_fetch_at_once(web: Web, cache: ShardCache) -> None:
    cache.limit = 50_000
    web.rate = 4e5
    items = [put(web, f"{i}.tar", os.urandom(20_000)) for i in range(6)]
    most = 0
    threads = [threading.Thread(target=content, args=(cache, item)) for item in items]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with suppress(FileNotFoundError):  # renamed a moment ago
            most = max(most, sum(path.stat().st_size for path in cache.folder.glob("*")))
        time.sleep(0.005)
    assert 20_000 <= most <= cache.limit
    assert len(web.requests) == 6


def test_a_damaged_file_is_fetched_again(web: Web, cache: ShardCache) -> None:
    item = put(web, "a.tar")
    content(cache, item)
    (cache.folder / item.name).write_bytes(b"cut")
    assert content(cache, item) == (web.folder / "a.tar").read_bytes()


def test_an_index_is_fetched_again_when_it_has_changed(web: Web, cache: ShardCache) -> None:
    for data in (b"first", b"other"):  # of one length
        put(web, "index.safetensors", data)
        paths = {cache.index(f"{web.url}/index.safetensors") for _ in range(2)}
        assert [Path(path).read_bytes() for path in paths] == [data]
    assert len(kept(cache)) == 2


def test_a_part_of_an_index_is_not_trusted(web: Web, cache: ShardCache) -> None:
    put(web, "index.safetensors", b"whole")
    path = Path(cache.index(f"{web.url}/index.safetensors"))
    path.rename(path.with_name(f"{path.name}.5.part")).write_bytes(b"xxx")
    assert Path(cache.index(f"{web.url}/index.safetensors")).read_bytes() == b"whole"


def test_shards_make_room_before_indices_do(web: Web, cache: ShardCache) -> None:
    cache.limit = 3 * SIZE
    put(web, "index.safetensors")
    index = Path(cache.index(f"{web.url}/index.safetensors"))
    os.utime(index, (0, 0))
    for i in range(4):
        content(cache, put(web, f"{i}.tar"))
    assert index.exists()


def test_a_folder_that_cannot_be_used_is_named(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/cache: remote shards cannot be kept there .*data\.cache"):
        ShardCache(str(tmp_path / "file" / "cache")).open(put(web, "a.tar"))


def test_a_remote_shard_opens_through_its_cache(web: Web, cache: ShardCache) -> None:
    os.close(RemoteShard(cache, put(web, "a.tar")).open())
    assert len(kept(cache)) == 1


@pytest.mark.parametrize("where", ["file", "part", "lock", "index"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "device", "FIFO", "folder", "hard link", "another user's"])
def test_nothing_but_its_own_files_is_read_or_written(
    web: Web, cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, kind: str
) -> None:
    item, victim = put(web, "a.tar"), tmp_path / "victim"
    put(web, INDEX_NAME)
    index = Path(cache.index(f"{web.url}/{INDEX_NAME}"))
    index.unlink()
    (cache.folder / "lock").unlink()
    part = cache.folder / f"{item.name}.{SIZE}.part"
    path = {"file": cache.folder / item.name, "part": part, "lock": cache.folder / "lock", "index": index}[where]
    victim.write_bytes(b"p" * SIZE)
    if kind == "hard link":
        os.link(victim, path)
    elif kind == "another user's":
        path.write_bytes(b"p" * SIZE)
        geteuid, started = os.geteuid, os.fstat
        foreign = path.stat().st_ino
        monkeypatch.setattr(os, "fstat", lambda file: as_of_another(started(file), foreign, geteuid()))
    else:
        plant(kind, path, victim)

    def read() -> bytes:
        return content(cache, item) if where != "index" else Path(cache.index(f"{web.url}/{INDEX_NAME}")).read_bytes()

    if kind == "hard link" and where in ("file", "index"):  # it has other bytes, so its name is removed
        assert read() == (web.folder / ("a.tar" if where == "file" else INDEX_NAME)).read_bytes()
    else:
        with pytest.raises(UserError, match=rf"^{path}: not a file of diffpipe's cache \(.*\); remove it$"):
            read()
    assert victim.read_bytes() == b"p" * SIZE
    assert not (tmp_path / "created").exists()


def as_of_another(status: os.stat_result, inode: int, user: int) -> os.stat_result:
    """The status of a file, as if the one with this inode belonged to another user."""
    return os.stat_result([*status[:4], user + 1, *status[5:10]]) if status.st_ino == inode else status


def test_the_folder_and_its_files_are_this_users_alone(web: Web, cache: ShardCache) -> None:
    content(cache, put(web, "a.tar"))
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o777)
    with pytest.raises(UserError, match=r"other users can write to it; run: chmod 700 .*data\.cache"):
        content(cache, put(web, "b.tar"))


@pytest.mark.parametrize("attributes", [True, False])
def test_a_file_of_the_right_length_is_not_believed(
    web: Web, cache: ShardCache, monkeypatch: pytest.MonkeyPatch, attributes: bool
) -> None:
    if not attributes:
        without_attributes(monkeypatch)
    item = put(web, "a.tar")
    content(cache, item)
    path = cache.folder / item.name
    before = path.stat()
    path.write_bytes(b"x" * SIZE)
    assert content(cache, item) == (web.folder / "a.tar").read_bytes()
    other = path.with_name("other")
    other.write_bytes(b"x" * SIZE)
    os.utime(other, ns=(before.st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert content(cache, item) == (web.folder / "a.tar").read_bytes()
    assert len(web.requests) == 3


def test_an_index_of_the_right_length_is_not_believed(web: Web, cache: ShardCache) -> None:
    data = put(web, INDEX_NAME).sha256
    path = Path(cache.index(f"{web.url}/{INDEX_NAME}"))
    path.write_bytes(b"x" * SIZE)
    other = path.with_name("other")
    for change in (
        lambda: path.write_bytes(b"x" * SIZE),
        lambda: other.write_bytes(b"x" * SIZE) and other.replace(path),
    ):
        change()
        assert sha256_of(Path(cache.index(f"{web.url}/{INDEX_NAME}"))) == data


def test_an_index_without_an_etag_is_fetched_each_time(web: Web, cache: ShardCache) -> None:
    web.etags = False
    for data in (b"first", b"other"):
        put(web, INDEX_NAME, data)
        assert Path(cache.index(f"{web.url}/{INDEX_NAME}")).read_bytes() == data


def test_names_that_no_cache_gives_are_left_alone(web: Web, cache: ShardCache) -> None:
    private_folder(cache.folder)
    names = [f"{'0' * 64}.{'9' * 150}.part", f"{'0' * 64}.x.part", "0" * 64 + ".y", "z" * 64, "1.part"]
    for name in names:
        (cache.folder / name).write_bytes(b"")
    cache.limit = SIZE
    for i in range(2):
        content(cache, put(web, f"{i}.tar"))
    assert set(names) < set(kept(cache))


def test_a_damaged_file_in_a_folder_that_cannot_be_written_to_is_an_error_about_the_folder(
    web: Web, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = put(web, "a.tar")
    private_folder(cache.folder)
    (cache.folder / item.name).write_bytes(b"cut")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # modes do not bind root
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"^{cache.folder}: remote shards cannot be kept there \(Permission denied\)"):
        cache.open(item)
