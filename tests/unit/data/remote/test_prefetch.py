"""Prefetching: the shards that are due come first, and each is fetched once a minute at most."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data.remote import prefetch
from diffpipe.data.remote.cache import RemoteShard, ShardCache
from diffpipe.data.remote.download import CachedFile
from diffpipe.data.remote.prefetch import Prefetcher
from diffpipe.errors import UserError


class HeldCache(ShardCache):
    """A cache that records what it is asked for: nothing, until it is released."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), 1)
        self.fetched: list[str] = []
        self.waiting, self.released, self.done = threading.Event(), threading.Event(), threading.Event()

    def fetch(self, file: CachedFile) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if file.url == "first":
            self.waiting.set()
            assert self.released.wait(10)
            return
        if file.url == "last":
            self.done.set()
            return
        self.fetched.append(file.url)
        if file.url == "lost":
            raise UserError("the server is gone")

    def shard(self, url: str) -> RemoteShard:
        return RemoteShard(self, CachedFile(url, 1, ""))

    def release(self) -> list[str]:
        """Let the thread go on. The files that it has fetched when it comes to the last one."""
        self.released.set()
        assert self.done.wait(10)
        return self.fetched


@pytest.fixture
def cache(tmp_path: Path) -> HeldCache:
    return HeldCache(tmp_path)


@pytest.fixture
def prefetcher(cache: HeldCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefetcher]:
    """A prefetcher of one thread, which waits in the cache."""
    monkeypatch.setattr(prefetch, "_THREADS", 1)
    started = Prefetcher()
    started.request([cache.shard("first")], due=True)
    assert cache.waiting.wait(10)
    yield started
    started.close()


def test_shards_that_are_due_come_first_and_none_twice(cache: HeldCache, prefetcher: Prefetcher) -> None:
    prefetcher.request(map(cache.shard, ["late", "later"]), due=False)
    prefetcher.request(map(cache.shard, ["now", "late"]), due=True)
    prefetcher.request([cache.shard("last")], due=False)
    assert cache.release() == ["now", "late", "later"]


def test_a_shard_is_requested_again_after_a_minute_and_an_error_does_not_end_the_thread(
    cache: HeldCache, prefetcher: Prefetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, urls in ((1000.0, ["lost", "late"]), (1059.0, ["late"]), (1060.0, ["lost"])):
        monkeypatch.setattr(prefetch.time, "monotonic", lambda now=now: now)
        prefetcher.request(map(cache.shard, urls), due=True)
    prefetcher.request([cache.shard("last")], due=False)
    monkeypatch.undo()
    assert cache.release() == ["lost", "late", "lost"]
