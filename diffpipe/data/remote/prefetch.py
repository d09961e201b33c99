"""Remote shards fetched into their cache before they are read."""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Iterable

from diffpipe.data.remote.cache import Remote
from diffpipe.errors import UserError

_THREADS = 2
_AGAIN = 60.0


class Ahead:
    """Threads of this process that fetch what they are asked for: what is due first, then in the order of asking."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._queue: queue.PriorityQueue[tuple[int, int, Remote | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._asked: dict[str, float] = {}
        for _ in range(_THREADS):
            # Daemons: a process need not wait for them to end. What they leave half fetched, the next one completes.
            threading.Thread(target=_fetch, args=(self._queue,), daemon=True).start()

    def ask(self, remotes: Iterable[Remote], due: bool) -> None:
        """Fetch these, unless they were asked for within the last minute."""
        now = time.monotonic()
        for remote in remotes:
            name = remote.item.name
            if self._asked.get(name, -_AGAIN) <= now - _AGAIN:
                self._asked[name] = now
                self._queue.put((0 if due else 1, next(self._count), remote))

    def close(self) -> None:
        """End the threads, each after what it is fetching."""
        if self.pid != os.getpid():
            return
        for _ in range(_THREADS):
            self._queue.put((-1, next(self._count), None))


def _fetch(waiting: queue.PriorityQueue[tuple[int, int, Remote | None]]) -> None:
    while (remote := waiting.get()[2]) is not None:
        try:
            remote.cache.fetch(remote.item)
        except UserError:
            continue  # whoever reads the shard meets the same, and says so
