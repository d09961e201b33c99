"""Work in chunks: the same pieces in the same order on any number of ranks, and an error on one is one on all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from diffpipe.cli.sharing import in_chunks
from diffpipe.contract import UserError
from diffpipe.train.runtime import Runtime


@dataclass(frozen=True)
class Rank(Runtime):
    """One of several ranks, which are threads here and hand their values to each other through `slots`."""

    number: int
    slots: list[Any]
    meeting: threading.Barrier

    @property
    def rank(self) -> int:
        return self.number

    @property
    def world(self) -> int:
        return len(self.slots)

    def gather(self, value: Any) -> list[Any]:
        self.slots[self.rank] = value
        self.meeting.wait(timeout=20)
        found = list(self.slots)
        self.meeting.wait(timeout=20)
        return found


def on_ranks(world: int, run: Callable[[Runtime], Any]) -> list[Any]:
    alone = Runtime.start("fp32", "cpu")
    slots, meeting = [None] * world, threading.Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda i: run(Rank(alone.accelerator, alone.dtype, i, slots, meeting)), range(world)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_all_results_in_order_and_each_chunk_was_done_once(world: int) -> None:
    done: list[range] = []

    def each(chunk: range) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        done.append(chunk)
        return torch.tensor(chunk)

    results = on_ranks(world, lambda runtime: in_chunks(230, each, runtime))
    assert sorted(done, key=lambda chunk: chunk.start) == [range(i, min(i + 50, 230)) for i in range(0, 230, 50)]
    assert [len(part) for part in results[0]] == [50, 50, 50, 50, 30]
    for parts in results:
        assert torch.equal(torch.cat(parts), torch.arange(230))


def test_what_one_rank_refuses_all_refuse() -> None:
    def each(chunk: range) -> int:
        if 60 in chunk:
            raise UserError("image 60 is broken")
        return len(chunk)

    def run(runtime: Runtime) -> str:
        with pytest.raises(UserError) as caught:
            in_chunks(130, each, runtime)
        return str(caught.value)

    assert on_ranks(2, run) == ["image 60 is broken"] * 2


def test_the_bar_is_shown_where_it_has_a_title(capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Runtime.start("fp32", "cpu")
    assert in_chunks(60, len, runtime) == [50, 10]
    assert capfd.readouterr().err == ""
    in_chunks(60, len, runtime, "count")
    shown = capfd.readouterr().err
    assert "count: 100%" in shown
    assert "60/60" in shown
