"""Ranks as threads of one process: quick, for tests of what the ranks exchange."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime


@dataclass(frozen=True)
class ThreadCommunicator(Communicator):
    """Each rank is a thread; `values` has one slot per rank."""

    values: list[Any] = field(default_factory=list)
    threads: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.threads.wait(timeout=20)
        gathered = list(self.values)
        self.threads.wait(timeout=20)
        return gathered

    def sum_in_place(self, value: Tensor) -> None:
        value.copy_(self.stack(value.clone()).sum(0))

    def stack(self, value: Tensor) -> Tensor:
        return torch.stack(self.gather(value))


def on_ranks(world: int, run: Callable[[Runtime], Any]) -> list[Any]:
    """The results of `run`, called by each rank in a thread of its own."""
    single = Runtime.start("fp32", "cpu")
    values, threads = [None] * world, threading.Barrier(world)
    comms = [ThreadCommunicator(rank, world, values=values, threads=threads) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, [dataclasses.replace(single, comm=comm) for comm in comms]))
