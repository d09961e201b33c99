"""Several sources: each has its share and is read in exact epochs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.data import DataConfig, load
from diffpipe.data.config import SourceConfig
from diffpipe.data.index.dataset_diff import differences
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.dataset import Dataset
from diffpipe.data.loader.mixture import MixedShardSet, Mixture, cache_warning, load_sources, shares
from diffpipe.data.loader.order import Order
from diffpipe.data.remote.cache import RemoteShard, ShardCache
from diffpipe.data.remote.download import CachedFile
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch
from diffpipe.resolution import square
from tests.support.tars import png, random_pixels, write_shards, write_tar

COUNTS = [np.array([3, 1]), np.array([20]), np.array([1, 1, 1])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two of grey images, the keys of the second in capitals."""
    home = tmp_path_factory.mktemp("sources")
    write_shards(home / "a", [5, 6])
    (home / "b").mkdir()
    members = {f"B{i}.{kind}": data for i in range(7) for kind, data in (("png", png(random_pixels(i))), ("cls", b"1"))}
    write_tar(home / "b" / "b.tar", members)
    for name in ("a", "b"):
        write_index(home / name)
    return [str(home / "a"), str(home / "b")]


def mixed(folders: list[str], *weights: float) -> MixedShardSet:
    shard_set = load_sources(None, [SourceConfig(url=url, weight=w) for url, w in zip(folders, weights, strict=True)])
    assert isinstance(shard_set, MixedShardSet)
    return shard_set


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 3.0], [1, 3]), ([0.25, 0.75], [1, 3]), ([6.0, 2.0, 4.0], [3, 1, 2]), ([0.1, 0.2], [1, 2]), ([5.0], [1])],
)
def test_weights_are_taken_as_they_are_written(weights: list[float], expected: list[int]) -> None:
    assert shares(weights) == expected


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_weights_without_small_proportions_are_rounded(weights: list[float]) -> None:
    if min(weights) * 4096 < sum(weights):
        with pytest.raises(UserError, match=r"less than 1/4096 of all"):
            shares(weights)
        return
    rounded = np.array(shares(weights))
    assert np.abs(rounded / rounded.sum() - np.array(weights) / sum(weights)).max() <= 1 / 4096


class MixtureArguments(NamedTuple):
    """The arguments of a mixture. A strategy cannot build it, since beartype draws random numbers."""

    seed: int
    shares: list[int]
    interleave: int
    shuffle_window: int

    def build(self) -> Mixture:
        return Mixture(self.seed, COUNTS[: len(self.shares)], self.shares, self.interleave, self.shuffle_window)


mixtures = st.builds(
    MixtureArguments,
    st.integers(0, 2**40),
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
    st.integers(1, 9),
    st.integers(1, 30),
)


@settings(max_examples=40)
@given(mixtures)
def test_each_source_has_its_share_and_comes_to_each_of_its_positions_once(arguments: MixtureArguments) -> None:
    mixture = arguments.build()
    block = mixture.columns * int(mixture._share.sum())
    positions = np.arange(3 * block)
    source, own = mixture.split(positions)
    assert (own % mixture.columns == positions % mixture.columns).all()
    for s, share in enumerate(mixture._share):
        for b in range(3):  # exact at the end of each block
            assert (source[b * block : (b + 1) * block] == s).sum() == share * mixture.columns
        assert np.array_equal(np.sort(own[source == s]), np.arange(3 * share * mixture.columns))


@settings(max_examples=40)
@given(mixtures, st.lists(st.integers(0, 10**5), min_size=1, max_size=20), st.integers(0, 2**40))
def test_a_position_does_not_depend_on_earlier_calls(arguments: MixtureArguments, asked: list[int], far: int) -> None:
    positions = np.array([*asked, far])
    together = np.stack(arguments.build().at(positions))
    for i in range(len(positions)):
        assert np.array_equal(np.stack(arguments.build().at(positions[i : i + 1]))[:, 0], together[:, i])


def test_every_rank_has_every_source_in_its_share() -> None:
    source, _ = Mixture(0, COUNTS, [1, 2, 1], 64, 16384).split(np.arange(1 << 16))
    for world in (2, 4, 8):
        for rank in range(world):
            assert np.bincount(source[rank::world]).tolist() == [
                (1 << 14) // world,
                (1 << 15) // world,
                (1 << 14) // world,
            ]
    assert len({tuple(source[i : i + 64]) for i in range(0, 1 << 16, 64)}) > 1000  # in no fixed pattern


def test_sources_of_the_same_size_are_shuffled_each_in_its_own_way() -> None:
    first, second = Mixture(0, [np.full(4, 50)] * 2, [1, 1], 64, 16384).orders
    assert not np.array_equal(np.stack(first.at(np.arange(200))), np.stack(second.at(np.arange(200))))


def test_a_rank_stays_in_its_own_shards_of_each_source() -> None:
    mixture = Mixture(0, [np.full(32, 100), np.full(64, 100)], [1, 2], interleave=16, shuffle_window=400)
    shard, _ = mixture.at(np.arange(32 * 100 * 3))  # an epoch of each
    assert len(set(shard.tolist())) == 96
    owned = [set(shard[rank::4].tolist()) for rank in range(4)]
    assert all(len(own) <= 96 // 4 + 2 * 2 for own in owned)  # and what the other lanes' last block laid over


def test_the_epochs_of_each_source_are_permutations(folders: list[str]) -> None:
    shard_set = mixed(folders, 1, 3)
    config = DataConfig(
        sources=tuple(SourceConfig(url=url, weight=w) for url, w in zip(folders, (1, 3), strict=True)),
        batch_size=8, resolution=square(8), channels=1, labels=True, interleave=4,
    )  # fmt: skip
    dataset = Dataset(config, shard_set, seed=6)
    assert isinstance(dataset.order, Mixture)
    positions = np.arange(4 * 64 * 4)
    batch = dataset.batch(positions)
    assert isinstance(batch, Batch)
    source, own = dataset.order.split(positions)
    assert [key.startswith("B") for key in batch.keys] == source.tolist()
    for s, keys in enumerate(({f"{i:05d}" for i in range(11)}, {f"B{i}" for i in range(7)})):
        by_own = dict(zip(own[source == s].tolist(), np.array(batch.keys)[source == s].tolist(), strict=True))
        for epoch in range(len(by_own) // len(keys)):
            assert Counter(by_own[epoch * len(keys) + i] for i in range(len(keys))) == Counter(keys)


def test_a_source_alone_is_what_data_train_names(folders: list[str]) -> None:
    alone = load_sources(None, [SourceConfig(url=folders[0], weight=3)])
    assert alone.fingerprint == load_sources(folders[0], ()).fingerprint == load(folders[0]).fingerprint


def test_the_fingerprint_covers_the_sources_and_their_proportions(folders: list[str]) -> None:
    assert mixed(folders, 1, 3).fingerprint == mixed(folders, 2, 6).fingerprint
    several = [mixed(folders, 1, 3), mixed(folders, 1, 1), mixed(folders[::-1], 1, 3)]
    assert len({shard_set.fingerprint for shard_set in [*several, load(folders)]}) == 4
    assert differences(several[0].listing, several[1].listing) == ["the weights of the sources were 1, 3 and are 1, 1"]


def test_contradictory_sources_are_refused(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a shard is in two of them"):
        mixed([folders[0], f"{folders[0]}/shard-000.tar"], 1, 1)
    image = png(random_pixels(0))
    for name, label, classes in (("c", b"0", ["cat", "dog"]), ("d", b"1", ["dog", "cat"]), ("e", b"2", None)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", {"a.png": image, "a.cls": label})
        write_index(tmp_path / name, classes)
    c, d, e = (str(tmp_path / name) for name in "cde")
    with pytest.raises(UserError, match=r"their indices name different classes"):
        mixed([c, d], 1, 1)
    with pytest.raises(UserError, match=r"a label is 2, but the index of another source names 2 classes"):
        mixed([c, e], 1, 1)


def test_a_cache_too_small_for_remote_shards_is_warned_of(folders: list[str]) -> None:
    local = load(folders[0])
    order = Order(0, [100] * 32, interleave=8, shuffle_window=400)  # two shards a lane
    assert cache_warning(local, order, 1) is None
    remote = RemoteShard(ShardCache("unused"), CachedFile("http://host/a.tar", 1, ""))
    far = ShardSet([local.shards[0]._replace(remote=remote, bytes=50) for _ in range(32)])
    assert cache_warning(far, order, 16 * 50) is None
    warning = cache_warning(far, order, 16 * 50 - 1)
    assert warning is not None
    assert "the 16 shards that are read from at a time have 800" in warning
    assert cache_warning(far, order, 8 * 50, rank_share=0.5) is None
