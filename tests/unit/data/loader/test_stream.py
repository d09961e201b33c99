"""The stream of batches: the same samples for any number of processes, workers and micro-batches."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.order import rank_positions
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch
from diffpipe.resolution import square
from tests.support.tars import random_pixels, write_shards

COUNTS = [13, 1, 30, 7]
CONFIG = DataConfig(
    train="unused",
    batch_size=12,
    resolution=square(8),
    channels=1,
    labels=True,
    flip=True,
    crop="random",
    workers=0,
    shuffle_window=10,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, COUNTS, size=(10, 12))
    write_index(folder)
    return load(str(folder))


def changed(**values) -> DataConfig:
    return DataConfig(**{**CONFIG.model_dump(), **values})


def take(n: int, iterator: Iterator[Batch]) -> list[Batch]:
    result = list(itertools.islice(iterator, n))
    iterator.close()  # type: ignore[attr-defined]
    return result


def by_position(many: list[Batch]) -> dict[int, tuple[str, int, bytes]]:
    rows: dict[int, tuple[str, int, bytes]] = {}
    for batch in many:
        assert batch.labels is not None
        for image, label, position, key in zip(batch.images, batch.labels, batch.positions, batch.keys, strict=True):
            assert int(position) not in rows
            rows[int(position)] = key, int(label), image.numpy().tobytes()
    return rows


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 40), st.integers(0, 1000))
def test_ranks_and_micro_batches_partition_the_global_batch(
    world: int, accumulate: int, extra: int, start: int
) -> None:
    size = world * accumulate + extra
    shares = [
        share
        for rank in range(world)
        for share in itertools.islice(rank_positions(size, start, rank, world, accumulate), accumulate)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(start, start + size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert min(map(len, shares)) >= 1


@pytest.mark.parametrize(("world", "accumulate", "workers"), [(1, 1, 2), (2, 1, 0), (3, 2, 0), (5, 2, 2), (12, 1, 0)])
def test_samples_do_not_depend_on_world_size_accumulation_or_workers(
    shards: ShardSet, world: int, accumulate: int, workers: int
) -> None:
    steps = 6  # more than an epoch: 72 of 51 samples
    expected = by_position(take(steps, batches(CONFIG, shards, seed=5)))
    split: list[Batch] = []
    for rank in range(world):
        stream = batches(changed(workers=workers), shards, 5, rank=rank, world=world, accumulate=accumulate)
        split += take(steps * accumulate, stream)
    assert by_position(split) == expected
    assert sorted(expected) == list(range(12 * steps))


def test_the_samples_are_those_of_the_shards(shards: ShardSet) -> None:
    rows = by_position(take(sum(COUNTS), batches(changed(batch_size=1, resolution=10, crop="center"), shards, seed=1)))
    assert sorted(key for key, _, _ in rows.values()) == [f"{i:05d}" for i in range(sum(COUNTS))]
    for key, label, image in rows.values():
        centre = random_pixels(int(key), (10, 12))[:, 1:11]
        assert label == int(key) % 3
        assert image in (centre.tobytes(), centre[:, ::-1].tobytes())
    flipped = sum(image == random_pixels(int(key), (10, 12))[:, 10:0:-1].tobytes() for key, _, image in rows.values())
    assert abs(flipped - 25.5) < 4 * 3.6


def test_augmentation_differs_from_epoch_to_epoch_and_seed_to_seed(shards: ShardSet) -> None:
    def pictures(seed: int, epoch: int) -> dict[str, bytes]:
        config = changed(batch_size=sum(COUNTS), resolution=6)
        (batch,) = take(1, batches(config, shards, seed, start=epoch * sum(COUNTS)))
        return {key: image.numpy().tobytes() for key, image in zip(batch.keys, batch.images, strict=True)}

    first = pictures(0, 0)
    for other in (pictures(0, 1), pictures(1, 0)):
        assert sum(first[key] != other[key] for key in first) > len(first) / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_at_any_position(shards: ShardSet, workers: int) -> None:
    whole = take(14, batches(CONFIG, shards, 3, accumulate=2))
    resumed = take(6, batches(changed(workers=workers), shards, 3, start=48, accumulate=2))
    for a, b in zip(whole[8:], resumed, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.positions, b.positions)
        assert a.keys == b.keys


def test_resuming_far_in_reads_only_its_own_samples(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: reads.append(a[1]) or pread(*a))
    (batch,) = take(1, batches(CONFIG, shards, 0, start=12 * 10**6))
    assert batch.positions[0] == 12 * 10**6
    assert len(reads) == 2 * 12  # an image and a label each


def test_each_shard_is_opened_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [2] * 100)
    write_index(tmp_path)
    shard_set = load(str(tmp_path))  # which hashes each of them
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *a, **b: opened.append(str(a[0])) or real(*a, **b))
    take(50, batches(changed(batch_size=4, shuffle_window=200), shard_set, 0))  # from all of them at a time
    tars = [path for path in opened if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) == 100


def test_batches_have_the_shapes_and_types_of_the_contract(shards: ShardSet) -> None:
    (batch,) = take(1, batches(changed(channels=3, labels=False), shards, 0))
    assert batch.images.shape == (12, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.positions.dtype == torch.int64
    assert batch.labels is None
    (batch,) = take(1, batches(CONFIG, shards, 0))
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64


def test_the_stream_leaves_global_generators_alone(shards: ShardSet) -> None:
    before = torch.get_rng_state()
    take(2, batches(changed(workers=1), shards, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_closing_the_iterator_ends_its_workers(shards: ShardSet) -> None:
    stream = batches(changed(workers=2), shards, 0)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_workers_ignore_signals_that_the_trainer_handles(shards: ShardSet) -> None:
    stream = batches(changed(workers=1), shards, 0)
    next(stream)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    for _ in range(10):
        next(stream)
    assert worker.is_alive()
    stream.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_workers_end_with_a_killed_trainer(shards: ShardSet) -> None:
    code = (
        "import multiprocessing, os, signal, sys; from diffpipe.data import *;"
        f"it = batches(DataConfig(train='', batch_size=4, resolution=8, workers=1), load({shards.paths!r}), 0)"
        ";next(it); print(multiprocessing.active_children()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False).stdout
    status = Path(f"/proc/{int(out)}")
    deadline = time.monotonic() + 60
    while status.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not status.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_shard_is_one_clear_line_even_from_a_worker(tmp_path: Path, workers: int) -> None:
    (path,) = write_shards(tmp_path, [8])
    write_index(tmp_path)
    shards = load(str(tmp_path))
    at = shards.sample(0, 0).members["png"].offset
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    stream = batches(changed(workers=workers, batch_size=8), shards, 0)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: 00000\.png was changed after indexing[^\n]*$"):
        next(stream)
    assert multiprocessing.active_children() == []
