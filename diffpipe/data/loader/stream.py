"""The endless stream of uint8 batches that trains, whose whole state is its position."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffpipe.data.config import DataConfig
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.buffer_pool import Ring
from diffpipe.data.loader.dataset import Samples, check
from diffpipe.data.worker_pool import DiedError, answers
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch


def batches(
    config: DataConfig,
    shard_set: ShardSet,
    seed: int,
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The micro-batches of a rank, without end: `accumulate` a step, from position `start` of the stream on.

    Global batch k of them is the k-th B positions from there on; the rank has every `world`-th of them from its rank
    on, and micro-batch m every `accumulate`-th of those from the m-th on. Where B does not divide evenly, the sizes
    differ by one. Close the iterator to end its workers. Raises UserError, at the call or while iterating.
    """
    check(config, shard_set, world, accumulate)
    samples = Samples(config, shard_set, seed)
    largest = -(-config.batch_size // (world * accumulate))
    # Those that are asked for, those of the step that goes on and of the next, and one that is handed over.
    slots = config.workers * config.prefetch + 2 * accumulate + 1
    shape, dtype = (config.channels, config.resolution, config.resolution), np.dtype(np.uint8)
    if samples.latents:  # what they are like, the first one says
        first = samples.batch(np.array([start + rank])).images.numpy()
        shape, dtype = first.shape[1:], first.dtype
    ring = Ring(slots, (largest, *shape), dtype)
    return _iterate(samples, ring, _Positions(config.batch_size, start, rank, world, accumulate), pin_memory)


def _iterate(samples: Samples, ring: Ring, positions: _Positions, pin_memory: bool) -> Generator[Batch, None, None]:
    config = samples.config
    requests = (_Request(each, ring.take()) for each in positions)
    source = answers(functools.partial(_fill, samples, ring), requests, config.workers, config.prefetch)
    try:
        for filled in source:
            batch = filled.received(ring)
            del filled
            if pin_memory:
                pinned = {name: each.pin_memory() for name, each in batch._asdict().items() if isinstance(each, Tensor)}
                batch = batch._replace(**pinned)
                del pinned
            yield batch
            del batch  # its memory, which the next one may have
    except DiedError as error:
        raise UserError(
            f"a loader process has died ({error}); where it was for want of memory, lower data.workers or "
            f"data.prefetch; the same command goes on from the last checkpoint"
        ) from error
    finally:
        source.close()  # ends the processes, though an error may still hold on to this frame


class _Positions:
    """The positions of each micro-batch of a rank, without end."""

    def __init__(self, batch_size: int, start: int, rank: int, world: int, accumulate: int):
        self.batch_size, self.start = batch_size, start
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __iter__(self) -> Iterator[range]:
        start = self.start
        while True:
            for m in range(self.accumulate):
                first = start + self.rank + self.world * m
                yield range(first, start + self.batch_size, self.world * self.accumulate)
            start += self.batch_size


class _Request(NamedTuple):
    """The positions of a batch, and the slot for its images, if there is one."""

    positions: range
    slot: int | None


class _Filled(NamedTuple):
    """A batch as it goes from process to process: arrays, and no images where they lie in a slot."""

    slot: int | None
    images: np.ndarray | None
    labels: np.ndarray | None
    positions: np.ndarray
    keys: list[str]
    valid: np.ndarray | None
    complaints: list[str]

    def received(self, ring: Ring) -> Batch:
        if self.slot is not None:
            images = ring.tensor(self.slot, len(self.positions))
        else:
            assert self.images is not None
            images = torch.from_numpy(self.images)
        labels, valid = (None if each is None else torch.from_numpy(each) for each in (self.labels, self.valid))
        return Batch(images, labels, torch.from_numpy(self.positions), self.keys, valid, self.complaints)


def _fill(samples: Samples, ring: Ring, request: _Request) -> _Filled:
    slot, positions = request.slot, np.array(request.positions, dtype=np.int64)
    batch = samples.batch(positions, None if slot is None else ring.view(slot, len(positions)))
    labels, valid = (None if each is None else each.numpy() for each in (batch.labels, batch.valid))
    images = batch.images.numpy() if slot is None else None
    return _Filled(slot, images, labels, positions, [*batch.keys], valid, [*batch.complaints])
