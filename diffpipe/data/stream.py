"""The endless stream of uint8 batches that trains, whose whole state is its position."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpipe.contract import Batch, UserError
from diffpipe.data.config import DataConfig
from diffpipe.data.index import ShardSet
from diffpipe.data.ring import Ring
from diffpipe.data.samples import Samples, check


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
    shape = (largest, config.channels, config.resolution, config.resolution)
    ring = Ring(0 if samples.latents else slots, shape)
    loader = DataLoader(
        _Loading(samples, ring),
        batch_sampler=_Requests(_Positions(config.batch_size, start, rank, world, accumulate), ring),  # type: ignore[arg-type]
        collate_fn=_itself,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        worker_init_fn=_outlive_signals,
        multiprocessing_context="fork" if config.workers else None,  # which shares the ring and the index
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    return _iterate(loader, ring, pin_memory)


def _iterate(loader: DataLoader, ring: Ring, pin_memory: bool) -> Generator[Batch, None, None]:
    source = _undisturbed(loader)
    try:
        while True:
            handed = _next(source, loader.num_workers)
            if isinstance(handed, UserError):
                raise handed
            batch = handed.received(ring)
            del handed
            if pin_memory:
                pinned = {name: each.pin_memory() for name, each in batch._asdict().items() if isinstance(each, Tensor)}
                batch = batch._replace(**pinned)
                del pinned
            yield batch
            del batch  # its memory, which the next one may have
    finally:
        del source  # ends the workers, though an error may still hold on to this frame


def _next(source: Iterator[_Handed | UserError], workers: int) -> _Handed | UserError:
    try:
        return next(source)
    except (RuntimeError, OSError, EOFError) as error:
        # A worker that dies while it hands a batch over leaves a broken pipe.
        if not workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise UserError(
            f"a loader process has died ({error}); where it was for want of memory, lower data.workers or "
            f"data.prefetch; the same command goes on from the last checkpoint"
        ) from error


def _undisturbed(loader: DataLoader) -> Iterator[_Handed | UserError]:
    """The loader's iterator, which finds a dead worker when it waits for one.

    Torch has a signal tell of it, too, by an error wherever this process is just then: in the midst of a save, say.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    source = iter(loader)
    if main:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return source


class _Positions:
    """The positions of each micro-batch of a rank, int64 [b], without end."""

    def __init__(self, batch_size: int, start: int, rank: int, world: int, accumulate: int):
        self.batch_size, self.start = batch_size, start
        self.rank, self.world, self.accumulate = rank, world, accumulate

    def __iter__(self) -> Iterator[np.ndarray]:
        start = self.start
        while True:
            for m in range(self.accumulate):
                first = self.rank + self.world * m
                yield np.arange(start + first, start + self.batch_size, self.world * self.accumulate, dtype=np.int64)
            start += self.batch_size


class _Request(NamedTuple):
    """What a loader process is asked for: positions int64 [b], and the slot for their images, if there is one."""

    positions: np.ndarray
    slot: int | None


class _Requests:
    """The positions of each micro-batch, each with a slot that is free when it is asked for."""

    def __init__(self, positions: _Positions, ring: Ring):
        self.positions, self.ring = positions, ring

    def __iter__(self) -> Iterator[_Request]:
        for positions in self.positions:
            yield _Request(positions, self.ring.take())


class _Handed(NamedTuple):
    """A batch as it is handed over between processes: without the images that lie in a slot.

    Each tensor would cost a file in shared memory; arrays go through the pipe.
    """

    slot: int | None
    images: Tensor | None
    labels: np.ndarray | None
    positions: np.ndarray
    keys: list[str]
    valid: np.ndarray | None
    complaints: list[str]

    def received(self, ring: Ring) -> Batch:
        images = self.images if self.slot is None else ring.tensor(self.slot, len(self.positions))
        assert images is not None
        labels, valid = (None if each is None else torch.from_numpy(each) for each in (self.labels, self.valid))
        return Batch(images, labels, torch.from_numpy(self.positions), self.keys, valid, self.complaints)


class _Loading(Dataset):
    """What loader processes do. A user's error is returned, for a DataLoader wraps one raised into its traceback."""

    def __init__(self, samples: Samples, ring: Ring):
        self.samples, self.ring = samples, ring

    def __getitems__(self, request: _Request) -> _Handed | UserError:
        positions, slot = request
        try:
            batch = self.samples.batch(positions, None if slot is None else self.ring.view(slot, len(positions)))
        except UserError as error:
            return error
        labels, valid = (None if each is None else each.numpy() for each in (batch.labels, batch.valid))
        images = batch.images if slot is None else None
        return _Handed(slot, images, labels, positions, [*batch.keys], valid, [*batch.complaints])


def _itself(batch: Any) -> Any:
    return batch


def _outlive_signals(worker: int) -> None:  # noqa: ARG001
    """Leave it to the trainer to answer a signal that reaches its whole process group or job.

    A worker that died of it would take the trainer down before it could save. SIGTERM from the trainer itself, which is
    how torch ends a worker that hangs, still ends it: only `sigwaitinfo` tells who sent it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = parent_process()
    assert trainer is not None
    parent = trainer.pid

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
