"""The endless stream of uint8 batches for training. Its position is its whole state."""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffpipe.data.config import DataConfig
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.buffer_pool import BufferPool
from diffpipe.data.loader.dataset import Dataset, check
from diffpipe.data.loader.order import rank_positions
from diffpipe.data.worker_pool import WorkerDiedError, WorkerPool
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
    """The micro-batches of a rank, without end: `accumulate` for each step, from position `start` of the stream on.

    `rank_positions` says which positions these are. Where the global batch does not divide evenly, the sizes differ by
    one. Close the generator to end its workers. Raises UserError, at the call or while iterating.
    """
    check(config, shard_set, world, accumulate)
    dataset = Dataset(config, shard_set, seed)
    largest = -(-config.batch_size // (world * accumulate))
    # The requested batches, those of the current and the next step, and one that is being handed over.
    slots = config.workers * config.prefetch + 2 * accumulate + 1
    shape, dtype = (config.channels, *config.resolution), np.dtype(np.uint8)
    if dataset.latents:  # the first one shows their shape
        first = dataset.batch(np.array([start + rank])).images.numpy()
        shape, dtype = first.shape[1:], first.dtype
    buffers = BufferPool(slots, (largest, *shape), dtype)
    positions = rank_positions(config.batch_size, start, rank, world, accumulate)
    requests = (_Request(each, buffers.take()) for each in positions)
    return _batches(dataset, buffers, requests, pin_memory)


def _batches(
    dataset: Dataset, buffers: BufferPool, requests: Generator[_Request, None, None], pin_memory: bool
) -> Generator[Batch, None, None]:
    """The batches for the requests. At most one is referred to from here, so that its buffer can be reused soon."""
    config = dataset.config
    with WorkerPool(functools.partial(_load, dataset, buffers), config.workers) as pool:
        try:
            for message in pool.imap(requests, prefetch=config.prefetch):
                batch = message.to_batch(buffers)
                del message
                if pin_memory:
                    pinned = {name: x.pin_memory() for name, x in batch._asdict().items() if isinstance(x, Tensor)}
                    batch = batch._replace(**pinned)
                    del pinned
                yield batch
                del batch
        except WorkerDiedError as error:
            raise UserError(
                f"a loader process has died ({error}); if memory ran out, lower data.workers or data.prefetch; the "
                "same command goes on from the last checkpoint"
            ) from error


class _Request(NamedTuple):
    """The positions of a batch, and the slot for its images, if one is free."""

    positions: range
    slot: int | None


class _BatchMessage(NamedTuple):
    """A batch as a worker sends it: arrays, and no images where they are in a slot."""

    slot: int | None
    images: np.ndarray | None
    labels: np.ndarray | None
    positions: np.ndarray
    keys: list[str]
    valid: np.ndarray | None
    errors: list[str]

    def to_batch(self, buffers: BufferPool) -> Batch:
        if self.slot is not None:
            images = buffers.tensor(self.slot, len(self.positions))
        else:
            assert self.images is not None
            images = torch.from_numpy(self.images)
        labels, valid = (None if array is None else torch.from_numpy(array) for array in (self.labels, self.valid))
        return Batch(images, labels, torch.from_numpy(self.positions), self.keys, valid, self.errors)


def _load(dataset: Dataset, buffers: BufferPool, request: _Request) -> _BatchMessage:
    """Load the batch at the requested positions. This runs in a worker."""
    slot, positions = request.slot, np.array(request.positions, dtype=np.int64)
    batch = dataset.batch(positions, None if slot is None else buffers.view(slot, len(positions)))
    labels, valid = (None if tensor is None else tensor.numpy() for tensor in (batch.labels, batch.valid))
    images = batch.images.numpy() if slot is None else None
    return _BatchMessage(slot, images, labels, positions, [*batch.keys], valid, [*batch.errors])
