"""Work on many images, shared by the ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from diffpipe.metrics.feature_sets import chunks
from diffpipe.progress_bar import progress_bar
from diffpipe.train.runtime import Runtime

T = TypeVar("T")


def map_over_ranks(n: int, function: Callable[[range], T], runtime: Runtime, title: str | None = None) -> list[T]:
    """The results of `function` on fixed chunks of range(n), in order, on every rank. A collective.

    The chunks are the same on any number of processes, and so is every bit of the results. Tensors in the results must
    be on the CPU. title: the name of a progress bar; None shows none. A UserError on any rank is raised on all.
    """
    results: dict[int, T] = {}

    def work() -> None:
        for chunk in chunks(n, runtime.rank, runtime.world):
            with torch.no_grad(), runtime.autocast():
                results[chunk.start] = function(chunk)
            bar.update(min(len(chunk) * runtime.world, n - bar.n))

    with progress_bar(title, "image", n, shown=runtime.main) as bar:
        runtime.comm.raise_on_all_ranks(work)
    parts = {start: part for of_rank in runtime.comm.gather(results) for start, part in of_rank.items()}
    return [parts[start] for start in sorted(parts)]


def on_rank_zero(runtime: Runtime, work: Callable[[], object]) -> None:
    """Do `work` on rank 0 alone. A UserError there is raised on all ranks. A collective."""
    runtime.comm.raise_on_all_ranks(lambda: work() if runtime.main else None)
