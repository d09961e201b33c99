"""The time per position and the memory of the stream's order, at 100,000 shards and 1e9 samples.

    OMP_NUM_THREADS=1 taskset -c 0,1 python -m eval.speed.order

Positions are requested as in training: rank 0's share of each global batch in turn. The CPU time includes the shuffling
of windows on the way. First batch: the first of a stream, which permutes the epoch's shards. Resumed: the same at 90%
of the epoch. Memory: the peak of numpy and Python (tracemalloc), in a separate run.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from diffpipe.data.loader.mixture import Mixture
from diffpipe.data.loader.order import Order
from eval.speed import launch
from eval.speed.benchmark import table

Make = Callable[[], Order | Mixture]


def shares(batch: int, world: int, start: int, n: int) -> Iterator[np.ndarray]:
    """Rank 0's `batch` positions of each global batch, until there are n of them."""
    for step in range(-(-n // batch)):
        yield np.arange(start + step * batch * world, start + (step + 1) * batch * world, world, dtype=np.int64)


def seconds(make: Make, batches: list[np.ndarray]) -> tuple[float, float]:
    """The CPU seconds of the first batch, and per position in the batches after it."""
    since = time.process_time()
    order = make()
    order.at(batches[0])
    first = time.process_time() - since
    since = time.process_time()
    for batch in batches[1:]:
        order.at(batch)
    return first, (time.process_time() - since) / sum(map(len, batches[1:]))


def peak(make: Make, batches: list[np.ndarray]) -> int:
    """The peak of the bytes that are held."""
    tracemalloc.start()
    try:
        order = make()
        for batch in batches:
            order.at(batch)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def row(name: str, make: Make, args: argparse.Namespace, world: int, total: int) -> dict[str, str]:
    batches = list(shares(args.batch, world, 0, args.n))
    later = list(shares(args.batch, world, total * 9 // 10, 2 * args.batch))
    runs = [seconds(make, batches) for _ in range(args.rounds)]
    resumed = statistics.median(seconds(make, later)[0] for _ in range(args.rounds))
    return {
        "order": name,
        "CPU per position": f"{statistics.median(position for _, position in runs) * 1e6:.2f} us",
        "first batch": f"{statistics.median(first for first, _ in runs) * 1e3:.0f} ms",
        "resumed at 90%": f"{resumed * 1e3:.0f} ms",
        "memory": f"{peak(make, batches) / 1e6:.0f} MB",
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10_000, help="samples per shard (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="batch per rank (default %(default)s)")
    parser.add_argument("--n", type=int, default=200_000, help="positions to request (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default %(default)s)")
    args = parser.parse_args(argv)
    counts = np.full(args.shards, args.samples)
    third = len(counts) // 3
    parts = [counts[:third], counts[third:]]
    total = int(counts.sum())
    rows = [row(f"one source, rank 0 of {world}", lambda: Order(0, counts), args, world, total) for world in (1, 8, 64)]
    rows.append(row("two sources, 1:2, rank 0 of 1", lambda: Mixture(0, parts, [1, 2], 64, 16384), args, 1, total))
    rows.append(row("two sources, 1:999, rank 0 of 1", lambda: Mixture(0, parts, [1, 999], 64, 16384), args, 1, total))
    print(table(rows))
    print(f"\n{args.shards} shards, {total} samples, batches of {args.batch} per rank; {launch.machine()}")


if __name__ == "__main__":
    main()
