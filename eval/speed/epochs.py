"""How many samples the first third of two epochs has in common.

    python -m eval.speed.epochs

For uniformly shuffled epochs it is a third. Counted on the order of the stream alone, over all pairs of epochs: no data
is needed. Version 1 is the order of checkpoints of earlier versions (`data.order_version`).
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np

from diffpipe.data.loader.order import VERSION, Order
from eval.speed.benchmark import table


def overlaps(order: Order, part: float, epochs: int) -> list[float]:
    """The share of the samples in the first `part` of one epoch that is also in that of another, for each pair."""
    n = int(part * order.total)
    first_sample = np.cumsum([0, *order.counts[:-1]])
    parts = []
    for epoch in range(epochs):
        shard, sample = order.at(np.arange(n) + epoch * order.total)
        parts.append(first_sample[shard] + sample)
    return [len(np.intersect1d(one, other)) / n for one, other in combinations(parts, 2)]


def column(values: list[float]) -> str:
    return f"{np.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000, help="samples in all shards (default %(default)s)")
    parser.add_argument("--shards", default="1,8,64,200", help="numbers of shards (default %(default)s)")
    parser.add_argument("--shuffle-windows", default="1024,4096,16384", help="(default %(default)s)")
    parser.add_argument("--interleave", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10, help="epochs to compare (default %(default)s)")
    args = parser.parse_args(argv)
    rows = []
    for shards in map(int, args.shards.split(",")):
        counts = np.full(shards, args.samples // shards)
        for window in map(int, args.shuffle_windows.split(",")):
            columns = {"shards": str(shards), "samples a shard": str(counts[0]), "window": str(window)}
            for version in range(1, VERSION + 1):
                order = Order(0, counts, args.interleave, window, version)
                columns[f"version {version}"] = column(overlaps(order, 1 / 3, args.epochs))
            rows.append(columns)
    print(table(rows))


if __name__ == "__main__":
    main()
