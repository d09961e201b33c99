"""Exact resume on data of any shape: a run that changes at each resume sees the samples of an uninterrupted one."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.config import SourceConfig
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.dataset import Dataset
from diffpipe.data.loader.mixture import load_sources
from diffpipe.data.loader.order import rank_positions
from diffpipe.interfaces import Batch
from tests.support.tars import write_shards

COUNTS = [1, 1, 1, 2, 3, 5, 8, 13, 21]
Row = tuple[str, int, bytes]
"""A sample of a batch: its key, its label, and its cropped and flipped pixels."""


class Leg(NamedTuple):
    """One job of a run. lost: steps that it trains after its last checkpoint, and that are repeated."""

    world: int
    accumulate: int
    workers: int
    batch_size: int
    steps: int
    lost: int


@st.composite
def legs(draw: st.DrawFn) -> Leg:
    world, accumulate = draw(st.integers(1, 8)), draw(st.integers(1, 2))
    size = world * accumulate + draw(st.integers(0, 16))
    return Leg(world, accumulate, draw(st.integers(0, 4)), size, draw(st.integers(1, 3)), draw(st.integers(0, 1)))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_shards(folder, COUNTS)
    write_index(folder)
    return folder


def config(**values: Any) -> DataConfig:
    fixed: dict[str, Any] = {"train": "unused", "resolution": 6, "channels": 1, "labels": True}
    return DataConfig(**{"batch_size": 1, "workers": 0, "flip": True, "crop": "random"} | fixed | values)


def rows(batch: Batch) -> dict[int, Row]:
    assert batch.labels is not None
    columns = batch.positions.tolist(), batch.keys, batch.labels.tolist(), batch.images.numpy()
    return {p: (key, label, image.tobytes()) for p, key, label, image in zip(*columns, strict=True)}


def share(dataset: Dataset, leg: Leg, start: int, rank: int) -> list[Batch]:
    """The micro-batches of a rank, each from the copy of the data set that its loader worker would have."""
    copies = [pickle.loads(pickle.dumps(dataset)) for _ in range(leg.workers)] or [dataset]
    sampler = rank_positions(leg.batch_size, start, rank, leg.world, leg.accumulate)
    asked = itertools.islice(sampler, (leg.steps + leg.lost) * leg.accumulate)
    return [at(copy, np.array(positions)) for copy, positions in zip(itertools.cycle(copies), asked, strict=False)]


def at(dataset: Dataset, positions: np.ndarray) -> Batch:
    return dataset.batch(positions)


def run(dataset: Dataset, several: Sequence[Leg]) -> tuple[dict[int, Row], int]:
    """The samples that the run saw at each position, and its last position. Repeated samples must be equal."""
    seen: dict[int, Row] = {}
    position = 0
    for leg in several:
        ranks = [share(dataset, leg, position, rank) for rank in range(leg.world)]
        assert len({len(one) for one in ranks}) == 1  # all take the same number of steps
        for step in range(leg.steps + leg.lost):
            parts = [b for one in ranks for b in one[step * leg.accumulate : (step + 1) * leg.accumulate]]
            assert all(len(part.keys) for part in parts)
            first = position + step * leg.batch_size
            taken = sorted(itertools.chain(*(part.positions.tolist() for part in parts)))
            assert taken == list(range(first, first + leg.batch_size))
            for p, row in itertools.chain(*(rows(part).items() for part in parts)):
                assert seen.setdefault(p, row) == row
        position += leg.steps * leg.batch_size
    return seen, position


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.integers(0, len(COUNTS) - 1), min_size=1, max_size=6, unique=True),
    several=st.lists(legs(), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    lanes=st.integers(1, 8),
    window=st.integers(1, 64),
)
def test_a_run_that_changes_at_each_resume_sees_the_samples_of_an_uninterrupted_one(
    pool: Path, shards: list[int], several: list[Leg], seed: int, lanes: int, window: int
) -> None:
    of: ShardSet = load([str(pool / f"shard-{i:03d}.tar") for i in shards])
    dataset = Dataset(config(interleave=lanes, shuffle_window=window), of, seed)
    seen, end = run(dataset, several)
    straight = rows(at(Dataset(config(interleave=lanes, shuffle_window=window), of, seed), np.arange(max(seen) + 1)))
    assert seen == straight
    # Nothing is lost and nothing repeated: each epoch that is over has every sample once.
    keys = Counter(of.sample(shard, i).key for shard, n in enumerate(of.counts) for i in range(n))
    assert max(keys.values()) == 1
    for epoch in range(end // of.total):
        assert Counter(seen[p][0] for p in range(epoch * of.total, (epoch + 1) * of.total)) == keys


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    several=st.lists(legs(), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    lanes=st.integers(1, 8),
)
def test_several_sources_are_exact_too(
    pool: Path, weights: list[int], several: list[Leg], seed: int, lanes: int
) -> None:
    sources = tuple(
        SourceConfig(url=[str(pool / f"shard-{i:03d}.tar") for i in range(s, len(COUNTS), len(weights))], weight=weight)
        for s, weight in enumerate(weights)
    )
    mixed = config(train=None, sources=sources, interleave=lanes, shuffle_window=16)
    of = load_sources(None, sources)
    seen, _ = run(Dataset(mixed, of, seed), several)
    assert seen == rows(at(Dataset(mixed, of, seed), np.arange(max(seen) + 1)))


def test_the_number_of_workers_does_not_change_the_samples(pool: Path) -> None:
    of = load(str(pool))
    expected = rows(at(Dataset(config(), of, 4), np.arange(160)))
    seen: dict[int, Row] = {}
    position = 0
    for workers, size, world in ((4, 24, 2), (0, 20, 4), (3, 36, 1)):  # 160 positions of 55 samples
        for rank in range(world):
            settings = config(workers=workers, batch_size=size, prefetch=workers or 1)
            stream = batches(settings, of, 4, start=position, rank=rank, world=world)
            for batch in itertools.islice(stream, 2):
                seen |= rows(batch)
            stream.close()
        position += 2 * size
    assert seen == expected
