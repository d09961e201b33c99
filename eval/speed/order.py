"""What the order of the stream costs: time a position, and memory, at 100,000 shards and 1e9 samples.

    OMP_NUM_THREADS=1 taskset -c 0,1 python -m eval.speed.order

Positions are asked for as training asks: a rank's share of global batch after global batch, here of rank 0. The windows
that are shuffled on the way are part of the time, which is the processor's. First batch: of a stream, which permutes
the epoch's shards; resumed: the same at 90% of the epoch. Memory: the most that numpy and Python hold (tracemalloc), in
a run of its own.
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
from eval.speed import jobs
from eval.speed.subject import table

Make = Callable[[], Order | Mixture]


def shares(batch: int, world: int, start: int, n: int) -> Iterator[np.ndarray]:
    """The positions of rank 0 in each global batch, of which it has `batch`, until it has had n of them."""
    for step in range(-(-n // batch)):
        yield np.arange(start + step * batch * world, start + (step + 1) * batch * world, world, dtype=np.int64)


def seconds(make: Make, batches: list[np.ndarray]) -> tuple[float, float]:
    """Of the first batch, and of a position in those after it."""
    since = time.process_time()
    order = make()
    order.at(batches[0])
    first = time.process_time() - since
    since = time.process_time()
    for batch in batches[1:]:
        order.at(batch)
    return first, (time.process_time() - since) / sum(map(len, batches[1:]))


def peak(make: Make, batches: list[np.ndarray]) -> int:
    """The most bytes that are held at a time."""
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
        "CPU a position": f"{statistics.median(each for _, each in runs) * 1e6:.2f} us",
        "first batch": f"{statistics.median(first for first, _ in runs) * 1e3:.0f} ms",
        "resumed at 90%": f"{resumed * 1e3:.0f} ms",
        "memory": f"{peak(make, batches) / 1e6:.0f} MB",
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10_000, help="of a shard (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="of a rank (default %(default)s)")
    parser.add_argument("--n", type=int, default=200_000, help="positions that a rank asks for (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken (default %(default)s)")
    args = parser.parse_args(argv)
    counts = np.full(args.shards, args.samples)
    third = len(counts) // 3
    parts = [counts[:third], counts[third:]]
    total = int(counts.sum())
    rows = [row(f"one source, rank 0 of {world}", lambda: Order(0, counts), args, world, total) for world in (1, 8, 64)]
    rows.append(row("two sources, 1:2, rank 0 of 1", lambda: Mixture(0, parts, [1, 2], 64, 16384), args, 1, total))
    rows.append(row("two sources, 1:999, rank 0 of 1", lambda: Mixture(0, parts, [1, 999], 64, 16384), args, 1, total))
    print(table(rows))
    print(f"\n{args.shards} shards, {total} samples, batches of {args.batch} a rank; {jobs.machine()}")


if __name__ == "__main__":
    main()
