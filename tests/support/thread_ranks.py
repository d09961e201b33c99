"""The ranks of a job as threads of one process: quick, where only what they exchange matters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime


@dataclass(frozen=True)
class Threads(Communicator):
    """Ranks that are threads here and hand their values to each other through `slots`."""

    slots: list[Any] = field(default_factory=list)
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.slots[self.rank] = value
        self.meeting.wait(timeout=20)
        found = list(self.slots)
        self.meeting.wait(timeout=20)
        return found


@dataclass(frozen=True)
class Rank(Runtime):
    """One of them."""

    place: Threads = field(default_factory=Threads)

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def world(self) -> int:
        return self.place.world

    @property
    def team(self) -> Communicator:
        return self.place


def on_ranks(world: int, run: Callable[[Runtime], Any]) -> list[Any]:
    alone = Runtime.start("fp32", "cpu")
    slots, meeting = [None] * world, threading.Barrier(world)
    ranks = [Rank(alone.accelerator, alone.dtype, place=Threads(i, world, None, slots, meeting)) for i in range(world)]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, ranks))
