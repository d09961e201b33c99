"""Samples encoded by several processes and written by one, in an order that does not depend on their number."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator

import numpy as np
from tqdm import tqdm

from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.shard_writer import ShardWriter
from diffpipe.data.packing.source import Source
from diffpipe.data.worker_pool import WorkerDiedError, WorkerPool
from diffpipe.errors import UserError
from diffpipe.plural import plural

_CHUNK = 16  # samples that a worker encodes at a time
_NAMED = 20  # bad samples that an error names

_Encoded = tuple[int, dict[str, bytes] | str]
"""The index of a sample in its source, and its members by extension, or the reason why it is bad."""


class BadSampleLimit:
    """The samples that could not be packed, with the reason for each, and how many of them are tolerated."""

    def __init__(self, max_bad_samples: int):
        self.max_bad_samples = max_bad_samples
        self.reasons: list[str] = []

    def count(self, reason: str) -> None:
        """Count a bad sample. Raises UserError past the limit."""
        self.reasons.append(reason)
        bad = len(self.reasons)
        if bad > self.max_bad_samples:
            named = "; ".join(f"({i}) {reason}" for i, reason in enumerate(self.reasons[-_NAMED:], 1))
            which = "" if bad <= _NAMED else f" (the last {_NAMED})"
            raise UserError(f"{plural(bad, 'bad sample')}, more than --max-bad {self.max_bad_samples}{which}: {named}")


def write_samples(
    source: Source, indices: np.ndarray, encoding: Encoding, shards: ShardWriter, limit: BadSampleLimit, workers: int
) -> None:
    """Write these samples of the source in this order, without the bad ones. Raises UserError past the limit."""
    with contextlib.closing(shards), contextlib.closing(encoded(source, encoding, indices, workers)) as samples:
        for i, members in samples:
            if isinstance(members, str):
                limit.count(members)
            else:
                shards.add(f"{i:08d}", members)


def encoded(source: Source, encoding: Encoding, indices: np.ndarray, workers: int) -> Generator[_Encoded, None, None]:
    """The encoded samples, in the order of `indices`. Raises UserError where a worker dies."""
    chunks = [indices[start : start + _CHUNK].tolist() for start in range(0, len(indices), _CHUNK)]
    workers = min(workers, len(chunks)) if len(chunks) > 1 else 0
    # The workers are forked before the progress bar starts its thread.
    with (
        WorkerPool(functools.partial(_encode_chunk, source, encoding), workers) as pool,
        tqdm(total=len(indices), unit="image", disable=None) as progress,
    ):
        try:
            for chunk in pool.imap(chunks, prefetch=4):
                yield from chunk
                progress.update(len(chunk))
        except WorkerDiedError as error:
            raise UserError(f"a worker process died ({error}); if memory ran out, lower --workers") from error


def _encode_chunk(source: Source, encoding: Encoding, chunk: list[int]) -> list[_Encoded]:
    return [(i, _encode(source, encoding, i)) for i in chunk]


def _encode(source: Source, encoding: Encoding, i: int) -> dict[str, bytes] | str:
    """The members of sample i. A UserError is returned as its message: it must not end the packing."""
    try:
        members = encoding.members(source.item(i))
    except UserError as error:
        return str(error)
    if "cls" not in members and source.labels is not None:
        members = {**members, "cls": str(source.labels[i]).encode()}
    return members
