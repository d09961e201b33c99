"""Remote shards, fetched into their cache before they are read."""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Iterable

from diffpipe.data.remote.cache import RemoteShard
from diffpipe.errors import UserError

_THREADS = 2
_REPEAT_AFTER = 60.0  # seconds

_Queue = queue.PriorityQueue[tuple[int, int, RemoteShard | None]]
"""Priority, number of the request, and the shard, or None to end the thread."""


class Prefetcher:
    """Threads of this process that fetch shards: first those that are due, then the others in the order of requests."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._queue: _Queue = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._requested: dict[str, float] = {}
        for _ in range(_THREADS):
            # Daemons: a process need not wait for them to end. The next process completes what they leave half fetched.
            threading.Thread(target=_fetch, args=(self._queue,), daemon=True).start()

    def request(self, shards: Iterable[RemoteShard], due: bool) -> None:
        """Fetch these shards, unless they were requested within the last minute."""
        now = time.monotonic()
        for shard in shards:
            name = shard.file.name
            if self._requested.get(name, -_REPEAT_AFTER) <= now - _REPEAT_AFTER:
                self._requested[name] = now
                self._queue.put((0 if due else 1, next(self._numbers), shard))

    def close(self) -> None:
        """End the threads, each after the shard that it is fetching."""
        if self.pid != os.getpid():
            return
        for _ in range(_THREADS):
            self._queue.put((-1, next(self._numbers), None))


def _fetch(requests: _Queue) -> None:
    while (shard := requests.get()[2]) is not None:
        try:
            shard.cache.fetch(shard.file)
        except UserError:
            continue  # whoever reads the shard gets the same error and reports it
