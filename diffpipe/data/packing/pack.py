"""Samples of any source → WebDataset shards with their index; the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from diffpipe.data.index.shard_index import write_index
from diffpipe.data.packing.choose import Split, choose
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.hub import HubSource
from diffpipe.data.packing.idx import IdxSource
from diffpipe.data.packing.output_folder import whole
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import Item, Source
from diffpipe.data.packing.write import Budget, Shards, write
from diffpipe.errors import UserError
from diffpipe.rng import permutation

__all__ = [
    "CifarSource",
    "Encoding",
    "FolderSource",
    "HubSource",
    "IdxSource",
    "Item",
    "ShardSource",
    "Source",
    "Split",
    "pack",
]


def pack(
    source: Source,
    out: Path,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008 (it cannot change)
    split: Split | None = None,
    shard_samples: int = 1000,
    only: Collection[int] = (),
    leave_out: Collection[int] = (),
    per_class: int | None = None,
    seed: int = 0,
    prefix: str = "shard",
    workers: int = 0,
    max_bad: int = 0,
) -> list[str]:
    """Write the shards `out/PREFIX-000000.tar` … and their index; `out` appears whole or not at all.

    The samples are shuffled by `seed`, so that each shard mixes the classes; keys are indices into the source.
    split: write them into `out/train` and `out/test` instead. only, leave_out: the labels to keep (all if none are
    given) and not to; none is renumbered. per_class: so many samples of each class that is kept, chosen by `seed`.
    workers: processes that encode beside this one, of which nothing in `out` depends. Returns what is wrong with each
    sample that was left out, at most `max_bad` of them. Raises UserError.
    """
    if Path(prefix).name != prefix:
        raise UserError(f"--prefix {prefix!r} is not a file name; give a plain word such as train")
    chosen = choose(source, only, leave_out, per_class, seed)
    chosen = chosen[permutation(len(chosen), seed, "pack")]
    parts = {"": chosen}
    if split is not None:
        tested = split.tested(source)[chosen]
        parts = {"train": chosen[~tested], "test": chosen[tested]}
    budget = Budget(max_bad)
    with whole(out) as folder:
        for name, indices in parts.items():
            place = folder / name
            place.mkdir(exist_ok=True)
            shards = Shards(place, prefix, shard_samples)
            write(source, indices, encoding, shards, budget, workers)
            if not shards.samples:
                first = f"; the first bad one is {budget.bad[0]}" if budget.bad else ""
                raise UserError(
                    f"no samples are left to pack{name and f' into {name}'}{first}; give some that are good"
                )
            write_index(place, source.classes, workers=workers)
    return budget.bad
