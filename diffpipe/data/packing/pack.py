"""Samples of any source, packed into WebDataset shards with their index. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.choose import Split, choose
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.output_folder import output_folder
from diffpipe.data.packing.shard_writer import ShardWriter
from diffpipe.data.packing.source import Source
from diffpipe.data.packing.write import BadSampleLimit, write_samples
from diffpipe.errors import UserError
from diffpipe.rng import permutation


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
    max_bad_samples: int = 0,
) -> list[str]:
    """Write the shards `out/PREFIX-000000.tar` … and their index. An interrupted pack leaves no partial output.

    The samples are shuffled by `seed`, so that each shard mixes the classes; keys are indices into the source. split:
    write into `out/train` and `out/test` instead. only: the labels to keep, all if none are given. leave_out: labels
    not to keep. Labels are not renumbered. per_class: how many samples to keep of each class, chosen by `seed`.
    workers: processes that encode beside this one; the output does not depend on their number.

    Returns the reason for each bad sample that was skipped, at most `max_bad_samples`. Raises UserError.
    """
    if Path(prefix).name != prefix:
        raise UserError(f"--prefix {prefix!r} is not a file name; give a plain word such as train")
    chosen = choose(source, only, leave_out, per_class, seed)
    chosen = chosen[permutation(len(chosen), seed, "pack")]
    parts = {"": chosen}
    if split is not None:
        tested = split.tested(source)[chosen]
        parts = {"train": chosen[~tested], "test": chosen[tested]}
    limit = BadSampleLimit(max_bad_samples)
    with output_folder(out) as folder:
        for name, indices in parts.items():
            part = folder / name
            part.mkdir(exist_ok=True)
            shards = ShardWriter(part, prefix, shard_samples)
            write_samples(source, indices, encoding, shards, limit, workers)
            if not shards.samples:
                first = f"; the first bad one is {limit.reasons[0]}" if limit.reasons else ""
                raise UserError(
                    f"no samples are left to pack{name and f' into {name}'}{first}; give some that are good"
                )
            write_index(part, source.classes, workers=workers)
    return limit.reasons
