"""How many shards a rank has open at a time, and how much it reads for what it uses.

    python -m eval.speed.locality

Counted on the order of the stream alone, over an epoch of rank 0 of W: no data is needed. At a time: the most shards
that it reads from while the stream advances by a window. Read/used: the samples of all shards that are fetched whole
into a cache with room for a number of shards (the least recently used one makes room), over the samples that are used.
From a local disk, only a sample's own bytes are read, in any order. Uniform: a uniform shuffle of the epoch.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import numpy as np

from diffpipe.data.loader.mixture import Mixture
from diffpipe.data.loader.order import Order, sequential
from diffpipe.rng import permutation
from eval.speed.benchmark import table


def concurrent_shards(shards: np.ndarray, span: int) -> int:
    """The most shards among `span` consecutive samples; shards: the shard of each sample."""
    return max(len(np.unique(shards[i : i + span])) for i in range(0, len(shards), span))


def count_fetches(shards: np.ndarray, room: int) -> int:
    """How often shards are fetched into a cache with room for `room` of them."""
    cache: OrderedDict[int, None] = OrderedDict()
    count = 0
    for shard in shards.tolist():
        if shard in cache:
            cache.move_to_end(shard)
            continue
        count += 1
        cache[shard] = None
        if len(cache) > room:
            cache.popitem(last=False)
    return count


def share(positions: int, batch: int, world: int) -> np.ndarray:
    """The positions of rank 0 in the whole batches among `positions`."""
    whole = np.arange(positions // batch * batch, dtype=np.int64).reshape(-1, batch)
    return whole[:, ::world].reshape(-1)


def row(name: str, shards: np.ndarray, samples: int, span: int, rooms: list[int]) -> dict[str, str]:
    columns = {"order": name, "shards": str(len(np.unique(shards))), "at a time": str(concurrent_shards(shards, span))}
    for room in rooms:
        columns[f"read/used, room for {room}"] = f"{count_fetches(shards, room) * samples / len(shards):.2f}"
    return columns


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1280)
    parser.add_argument("--samples", type=int, default=1000, help="samples per shard (default %(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="the global batch (default %(default)s)")
    parser.add_argument("--worlds", default="1,8,64", help="numbers of processes (default %(default)s)")
    parser.add_argument("--interleave", type=int, default=64)
    parser.add_argument("--shuffle-window", type=int, default=16384)
    parser.add_argument("--rooms", default="16,64,256", help="sizes of the cache, in shards (default %(default)s)")
    args = parser.parse_args(argv)
    counts = np.full(args.shards, args.samples)
    rooms = [int(room) for room in args.rooms.split(",")]
    order = Order(0, counts, args.interleave, args.shuffle_window)
    half = len(counts) // 2
    mixture = Mixture(0, [counts[:half], counts[half:]], [1, 1], args.interleave, args.shuffle_window)
    rows = []
    for world in map(int, args.worlds.split(",")):
        positions, span = share(order.total, args.batch, world), args.shuffle_window // world
        rows.append(row(f"rank 0 of {world}", order.at(positions)[0], args.samples, span, rooms))
        rows.append(row(f"rank 0 of {world}, two sources", mixture.at(positions)[0], args.samples, span, rooms))
        uniform = sequential(counts, permutation(order.total, "uniform")[positions])[0]
        rows.append(row(f"rank 0 of {world}, uniform", uniform, args.samples, span, rooms))
    print(table(rows))
    print(f"\n{args.shards} shards of {args.samples}, {order.lanes} lanes, a window of {args.shuffle_window}")


if __name__ == "__main__":
    main()
