"""The memory of a batch is never reused while something still refers to it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.buffer_pool import BufferPool
from diffpipe.resolution import square
from tests.support.tars import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [30, 20], size=(8, 8))
    write_index(folder)
    return load(str(folder))


def config(workers: int) -> DataConfig:
    return DataConfig(train="unused", batch_size=7, resolution=square(8), labels=True, workers=workers)


def test_a_slot_is_free_when_nothing_refers_to_it() -> None:
    ring = BufferPool(2, (4, 3, 5, 6), np.uint8)
    slots = [ring.take(), ring.take()]
    assert sorted(slots) == [0, 1]  # type: ignore[type-var]
    assert ring.take() is None
    tensor = ring.tensor(0, 3)
    assert tensor.shape == (3, 3, 5, 6)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    held = [tensor, tensor[1:, 0], tensor.numpy()]
    del tensor
    while held:
        assert ring.take() is None
        held.pop(0)
    assert ring.take() == 0


def test_no_buffer_lies_in_dev_shm() -> None:
    """Containers give it 64 MB."""
    ring = BufferPool(1, (1, 3, 64, 64), np.uint8)
    address = ring.view(0, 1).__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(word, 16) for word in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.endswith("/dev/zero (deleted)"), line  # anonymous memory that forked processes share
            return
    raise AssertionError("the buffer is not mapped")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_forked_process_writes_what_this_one_reads(dtype: type) -> None:
    ring = BufferPool(3, (2, 3, 4, 4), dtype)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4)).astype(dtype)
    slot = ring.take()
    assert slot is not None
    if not (child := os.fork()):
        ring.view(slot, 2)[:] = pixels
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(ring.tensor(slot, 2).numpy(), pixels)
    assert not ring.view(1 if slot != 1 else 0, 2).any()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_that_are_held_keep_their_pixels(shards: ShardSet, workers: int) -> None:
    """More of them than there are slots for."""
    stream = batches(config(workers), shards, 0)
    held = list(itertools.islice(stream, 30))
    expected = [batch.images.clone() for batch in itertools.islice(batches(config(0), shards, 0), 30)]
    next(stream)
    assert all(torch.equal(batch.images, images) for batch, images in zip(held, expected, strict=True))
    assert len({batch.images.data_ptr() for batch in held}) == 30
    stream.close()


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (0, 2), (2, 1), (2, 3)])
def test_released_memory_is_reused(shards: ShardSet, workers: int, accumulate: int) -> None:
    stream = batches(config(workers), shards, 0, accumulate=accumulate)
    seen: set[int] = set()
    for _ in range(20):
        micro = [next(stream) for _ in range(accumulate)]  # while the ones before are still referred to
        seen |= {batch.images.data_ptr() for batch in micro}
    assert len(seen) <= 2 * workers + 2 * accumulate + 1
    del micro
    stream.close()


def test_pinned_batches_are_copies_that_leave_the_slots_free(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, a copy stands for a pinned one. A copy to the device may go on when the batch is forgotten."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    taken: list[int] = []
    view = BufferPool.view
    monkeypatch.setattr(BufferPool, "view", lambda ring, slot, n: taken.append(slot) or view(ring, slot, n))
    held = list(itertools.islice(batches(config(0), shards, 0, pin_memory=True), 10))
    expected = list(itertools.islice(batches(config(0), shards, 0), 10))
    assert all(torch.equal(a.images, b.images) for a, b in zip(held, expected, strict=True))
    assert len(set(taken[:20])) == 1  # each is seen by who fills it and by who reads it
