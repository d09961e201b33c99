"""Random numbers by position: the published bits, the distributions, and what they depend on."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from diffpipe.rng import KeyedRNG, fold_in, inverse_normal_cdf, permutation, permutation_start, philox

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key (low word first), output.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
N = 50_000
ALPHA = 1e-4  # the seeds are fixed, so each of these tests passes always or never


def rng(positions: Any = N, seed: int = 0) -> KeyedRNG:
    return KeyedRNG(seed, torch.arange(positions) if isinstance(positions, int) else torch.as_tensor(positions))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
@pytest.mark.parametrize("array", [lambda word: np.array([word] * 3), lambda word: torch.tensor([word] * 3)])
def test_philox_gives_the_published_words(counter, key, answer, array):
    words = philox(*map(array, counter), key=key[0] | key[1] << 32)
    assert [word.tolist() for word in words] == [[a] * 3 for a in answer]


def test_numpy_and_torch_give_the_same_bits():
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 1000))
    key = fold_in("a key of 63 bits")
    ours = philox(*counters, key=key)
    theirs = philox(*torch.from_numpy(counters), key=key)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(ours, theirs, strict=True))


EXTREME = [0, 1, 2, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF]


def quantile(words: np.ndarray) -> np.ndarray:
    """The normal quantile in float64, from the definition in `inverse_normal_cdf`'s docstring."""
    z = -special.ndtri(((words & 0x7FFFFFFF) + 0.5) / 2**32)
    return np.where(words > 0x7FFFFFFF, z, -z)


@pytest.mark.parametrize(
    "words",
    [
        np.array(EXTREME),
        np.arange(2**16),
        np.arange(2**31 - 2**16, 2**31),
        np.arange(0, 2**32, 65521),
        np.unique(np.logspace(0, 31, 20_000, base=2).astype(np.int64)) | 1 << 31,
    ],
    ids=["extreme", "tail", "centre", "even", "logarithmic"],
)
def test_the_normal_quantile_agrees_with_scipy(words):
    z = inverse_normal_cdf(torch.from_numpy(words))
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    np.testing.assert_allclose(z.double(), quantile(words), rtol=1e-6, atol=2e-7)


def test_the_normal_quantile_is_symmetric_and_reaches_6_3():
    words = torch.tensor([0, 5, 12345, 2**30, 2**31 - 1])
    assert torch.equal(inverse_normal_cdf(words), -inverse_normal_cdf(words + 2**31))
    assert inverse_normal_cdf(torch.tensor([2**31])).item() == pytest.approx(6.33, abs=0.01)


def test_normals_are_standard_normal():
    z = rng(200).normal("noise", (1000,)).numpy().ravel().astype(np.float64)
    n = len(z)
    assert stats.kstest(z, "norm").pvalue > ALPHA
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert (np.abs(z) > 4).sum() == pytest.approx(n * 6.334e-5, abs=5 * (n * 6.334e-5) ** 0.5)


def normal_variants() -> dict[str, torch.Tensor]:
    """Normals that differ in one argument each."""
    return {
        "base": rng().normal("noise", (4,)),
        "another purpose": rng().normal("start", (4,)),
        "another seed": rng(seed=1).normal("noise", (4,)),
        "another stream": rng().normal("noise", (4,), stream=1),
        "the next position": rng(torch.arange(N) + 1).normal("noise", (4,)),
        "another high word": rng(torch.arange(N) + 2**32).normal("noise", (4,)),
        "another stream, far": rng().normal("noise", (4,), stream=999),
    }


def test_no_two_draws_are_correlated():
    """Between purposes, seeds, streams and positions, and between the pixels of one image, squared or not."""
    values = torch.cat(list(normal_variants().values()), dim=1).numpy()
    for power in (1, 2):
        correlation = np.corrcoef(values**power, rowvar=False)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / N**0.5
    for a, b in itertools.combinations(normal_variants().values(), 2):
        assert (a == b).float().mean() < 1e-3


@pytest.mark.parametrize("splits", [[1] * 9, [4, 5], [2, 3, 4], [8, 1]])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (2, 33), (1, 64, 64)])
def test_a_row_does_not_depend_on_its_batch(splits, shape):
    positions = torch.tensor([5, 0, 2**40, 7, 2**32 - 1, 2**32, 123456, 1, 3])
    whole, parts = rng(positions), [rng(part) for part in positions.split(splits)]
    assert torch.equal(whole.normal("noise", shape, 3), torch.cat([p.normal("noise", shape, 3) for p in parts]))
    assert torch.equal(whole.uniform("flip"), torch.cat([p.uniform("flip") for p in parts]))
    assert torch.equal(whole.integers("t", 1000), torch.cat([p.integers("t", 1000) for p in parts]))


def test_the_quantile_of_a_word_does_not_depend_on_its_neighbours():
    """Vector units and the loop over the rest must round alike: slices of odd length and odd start."""
    words = rng(1).bits("words", 4099)[0]
    whole = inverse_normal_cdf(words)
    for start, length in [(0, 1), (1, 7), (3, 31), (17, 129), (1000, 3001), (5, 4094)]:
        assert torch.equal(inverse_normal_cdf(words[start : start + length].clone()), whole[start : start + length])


def test_a_longer_draw_begins_with_the_shorter_one():
    assert torch.equal(rng(5).bits("noise", 103)[:, :6], rng(5).bits("noise", 6))


def test_the_order_of_positions_is_the_order_of_rows():
    there, back = rng([3, 10, 2**33]).normal("noise", (6,)), rng([2**33, 10, 3]).normal("noise", (6,))
    assert torch.equal(there, back.flip(0))


@pytest.mark.parametrize("base", [0, 2**32 + 1, 2**63 - 1])
def test_every_bit_of_a_position_counts(base):
    positions = [base, *(base ^ 1 << bit for bit in range(63))]
    rows = rng(positions).bits("noise", 4)
    assert len({tuple(row) for row in rows.tolist()}) == len(positions)


def test_bits_are_balanced_32_bit_words():
    words = rng().bits("noise", 4)
    assert words.dtype == torch.int64
    assert 0 <= words.min() <= words.max() < 2**32
    ones = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / (4 * N) ** 0.5


def test_uniforms_are_uniform():
    u = rng().uniform("flip")
    assert u.dtype == torch.float32
    assert stats.kstest(u.numpy(), "uniform").pvalue > ALPHA


def test_uniforms_of_a_shape_come_from_the_words_in_their_order():
    u = rng(5).uniform("pixel", (2, 3), stream=4)
    assert torch.equal(u.flatten(1), ((rng(5).bits("pixel", 6, 4) >> 9).float() + 0.5) * 2.0**-23)
    assert u.shape == (5, 2, 3)


def test_uniforms_of_extreme_bits_stay_inside_the_open_interval(monkeypatch):
    extremes = torch.tensor([[0], [2**32 - 1]])
    monkeypatch.setattr(KeyedRNG, "bits", lambda *args: extremes)
    low, high = rng(2).uniform("flip").double().tolist()
    assert (low, high) == (2.0**-24, 1 - 2.0**-24)


@pytest.mark.parametrize("high", [1, 2, 3, 10, 1000])
def test_integers_are_unbiased(high):
    values = rng().integers("timestep", high)
    assert values.dtype == torch.int64
    counts = np.bincount(values.numpy(), minlength=high)
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("high", [1, 7, 2**31])
def test_integers_of_extreme_bits_are_in_range(high, monkeypatch):
    extremes = torch.tensor([[0], [2**32 - 1]])
    monkeypatch.setattr(KeyedRNG, "bits", lambda *args: extremes)
    assert rng(2).integers("timestep", high).tolist() == [0, high - 1]


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_has_every_entry_once(n):
    order = permutation(n, 0, "order")
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize(
    ("size", "n"), [(0, 5), (3, 0), (1, 1), (7, 5), (5, 5), (10, 70_000), (60_000, 300_000), (150_000, 200_000)]
)
def test_the_start_of_a_permutation_is_the_permutations(size, n):
    assert np.array_equal(permutation_start(size, n, 3, "order"), permutation(n, 3, "order")[:size])


def test_the_start_of_a_permutation_takes_memory_for_the_start_alone():
    def peak(n):
        tracemalloc.start()
        permutation_start(1000, n, 0, "order")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(2_000_000) < 1.2 * peak(200_000) < 15_000_000  # the whole one takes 94 bytes an entry


def test_a_permutation_depends_on_every_part_and_on_nothing_else():
    parts = [(0, "order", 3), (1, "order", 3), (0, "window", 3), (0, "order", 4), (0, "order"), ("0", "order", 3)]
    orders = [tuple(permutation(100, *p)) for p in parts]
    assert len(set(orders)) == len(parts)
    assert orders == [tuple(permutation(100, *p)) for p in parts]


def test_permutations_are_uniform():
    """All 24 orders of four entries are equally likely."""
    seen = [tuple(permutation(4, seed, "order")) for seed in range(12_000)]
    counts = [seen.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == len(seen)
    assert stats.chisquare(counts).pvalue > ALPHA


def test_fold_in_depends_on_each_part_its_type_and_its_position():
    parts = [
        (1, "23"),
        ("1", 23),
        (12, "3"),
        ("1", "23"),
        (1, 23),
        (123,),
        ("123",),
        ("23", 1),
        (1, "2", "3"),
        (-1, "23"),
        (),
    ]
    seeds = [fold_in(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_fold_in_is_the_same_in_every_process():
    """Not Python's salted hash: coreutils' `b2sum -l 64` gives a75721e97117bcbb for these parts."""
    assert fold_in(0, "noise") == 0x5DDE0BB8F490ABD3
