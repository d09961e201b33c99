"""The endless stream of uint8 batches that trains, whose whole state is its position."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import parent_process
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffpipe import rng
from diffpipe.contract import BadSampleError, Batch, UserError
from diffpipe.data.config import DataConfig
from diffpipe.data.decode import decode, decode_to, fit, pixels
from diffpipe.data.index import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.latents import LATENTS, are_latents, from_bytes
from diffpipe.data.order import Order, sequential
from diffpipe.data.read import Reader
from diffpipe.data.sources import Mixture, order_of
from diffpipe.data.table import Sample

_OPEN = 512  # of the 1024 files that a process may usually have open


class _Row(NamedTuple):
    """A sample of a batch: [c h w], or nothing and why."""

    key: str
    label: int
    image: np.ndarray | None
    complaint: str = ""


class StreamDataset(Dataset):
    """A map from positions of the stream to batches, of which each sample depends on (seed, position) alone."""

    def __init__(self, config: DataConfig, shard_set: ShardSet, seed: int):
        self.config = config
        self.seed = seed
        self.order = order_of(shard_set, seed, config.lanes, config.window)
        self.reader = Reader(shard_set, open_files=min(_OPEN, 2 * self.order.at_a_time))
        self._ahead = order_of(shard_set, seed, config.lanes, config.window) if self.reader.remote else None
        self._begun = False
        self.latents = are_latents(shard_set)

    def __getitems__(self, positions: np.ndarray) -> Batch | UserError:
        """The batch of positions int64 [b].

        An error of the user's is returned, for a DataLoader would wrap one raised in a worker into its traceback.
        """
        try:
            return self._batch(positions)
        except UserError as error:
            return error

    def _batch(self, positions: np.ndarray) -> Batch:
        config = self.config
        words = np.zeros((len(positions), 3), np.int64)
        if config.flip or config.crop == "random":
            words = rng.Draws(self.seed, torch.from_numpy(positions)).bits("augment", 3).numpy()
        shards, indices = self.order.at(positions)
        if self._ahead is not None:
            self._expect(self._ahead, shards, positions)
        rows = [self._row(*place) for place in zip(shards.tolist(), indices.tolist(), words, strict=True)]
        images = [self._blank if row.image is None else row.image for row in rows]
        return Batch(
            images=torch.from_numpy(np.stack(images)),
            labels=torch.tensor([row.label for row in rows]) if config.labels else None,
            positions=torch.from_numpy(positions),
            keys=[row.key for row in rows],
            valid=torch.tensor([row.image is not None for row in rows]) if config.max_bad else None,
            complaints=[row.complaint for row in rows if row.complaint],
        )

    def _expect(self, order: Order | Mixture, shards: np.ndarray, positions: np.ndarray) -> None:
        """Have the remote shards of this batch fetched, and then those that come within two windows.

        The order is one of its own, for each keeps the windows that it was asked for last.
        """
        self.reader.expect(shards.tolist(), due=True)
        end = min(2 * self.config.window, self.reader.shard_set.total)
        steps = np.array([end]) if self._begun else np.arange(0, end + 1, self.config.batch_size)
        self.reader.expect(order.at((steps[:, None] + positions).ravel())[0].tolist(), due=False)
        self._begun = True

    def _row(self, shard: int, index: int, words: np.ndarray) -> _Row:
        """A sample, or why it cannot be had, where that may be."""
        config, reader = self.config, self.reader
        sample = reader.shard_set.sample(shard, index)
        where = f"{reader.shard_set.paths[shard]}: {sample.key}"
        try:
            label = reader.label(shard, sample) if config.labels else 0
            if self.latents:
                return _Row(sample.key, label, from_bytes(reader.read(shard, sample, LATENTS), where))
            data, size, most = reader.image(shard, sample), config.resolution, config.max_pixels
            image = decode_to(data, config.channels, where, size, config.crop, config.flip, words, most)
            return _Row(sample.key, label, image)
        except BadSampleError as error:
            if not config.max_bad:
                raise
            return _Row(sample.key, 0, None, str(error))

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """What stands for a bad sample: zeros, of the shape of a good one."""
        config, shard_set = self.config, self.reader.shard_set
        if not self.latents:
            return np.zeros((config.channels, config.resolution, config.resolution), dtype=np.uint8)
        for shard, count in enumerate(shard_set.counts.tolist()):
            for i in range(count):
                with contextlib.suppress(BadSampleError):
                    data = self.reader.read(shard, shard_set.sample(shard, i), LATENTS)
                    return np.zeros_like(from_bytes(data, ""))
        raise UserError(f"{shard_set.paths[0]} and its set: none of the latents can be read; encode the images again")


def check(config: DataConfig, shard_set: ShardSet, world: int = 1, accumulate: int = 1) -> None:
    """Raise UserError where the shards or the batch size cannot serve the config."""
    if config.batch_size < world * accumulate:
        raise UserError(
            f"data.batch_size={config.batch_size} cannot be split over {world} processes and {accumulate} "
            f"micro-batches (train.accumulate); make it {world * accumulate} or more"
        )
    latents, path = are_latents(shard_set), shard_set.lacking(*IMAGE_EXTENSIONS)
    if latents and (config.flip or config.crop != "center"):
        raise UserError(f"{path}: latents cannot be flipped or cropped; set data.flip=false and data.crop=center")
    if path is not None and not latents:
        raise UserError(f"{path}: some samples have no image; each needs one of {', '.join(IMAGE_EXTENSIONS)}")
    if config.labels:
        path = shard_set.lacking("cls")
        if path is not None:
            raise UserError(
                f"{path}: some samples have no .cls member; pack the shards with labels or set data.labels=false"
            )
        path = next((shard.path for shard in shard_set.shards if shard.classes is None), None)
        if path is not None:
            raise UserError(
                f"{path}: some .cls members are not integers ≥ 0; pack integer labels or set data.labels=false"
            )


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
    dataset = StreamDataset(config, shard_set, seed)
    loader = DataLoader(
        dataset,
        batch_sampler=_Positions(config.batch_size, start, rank, world, accumulate),  # type: ignore[arg-type]
        collate_fn=_itself,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        worker_init_fn=_outlive_signals,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader would draw from the global one
    )
    return _iterate(loader)


def _iterate(loader: DataLoader) -> Generator[Batch, None, None]:
    source = _undisturbed(loader)
    try:
        while True:
            batch = _next(source, loader.num_workers)
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        del source  # ends the workers, though an error may still hold on to this frame


def _next(source: Iterator[Batch | UserError], workers: int) -> Batch | UserError:
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


def _undisturbed(loader: DataLoader) -> Iterator[Batch | UserError]:
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


def images(
    shard_set: ShardSet, indices: Sequence[int] | np.ndarray, resolution: int | None, channels: int
) -> UInt8[Tensor, "b c h w"]:
    """The images at `indices` of the shards put end to end, unshuffled and without randomness.

    They are resized and cropped at the centre to `resolution`, or left as they are where it is None (and must then be
    of one size). Raises UserError.
    """
    reader = Reader(shard_set)
    none = np.zeros(3, dtype=np.int64)
    rows: list[np.ndarray] = []
    for shard, sample in _samples(shard_set, indices):
        where = f"{shard_set.paths[shard]}: {sample.key}"
        image = decode(reader.image(shard, sample), channels, where)
        row = pixels(image if resolution is None else fit(image, resolution, "center", False, none))
        if rows and row.shape != rows[0].shape:
            raise UserError(f"{where}: the images differ in size; give a resolution")
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


def labels(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> Int[Tensor, " b"]:
    """The labels at `indices` of the shards put end to end. Raises UserError where one is missing or not an integer."""
    reader = Reader(shard_set)
    return torch.tensor([reader.label(*place) for place in _samples(shard_set, indices)], dtype=torch.int64)


def _samples(shard_set: ShardSet, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Sample]]:
    shards, within = sequential(shard_set.counts, np.asarray(indices, dtype=np.int64))
    for shard, i in zip(shards.tolist(), within.tolist(), strict=True):
        yield shard, shard_set.sample(shard, i)
