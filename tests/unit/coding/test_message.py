"""The message: it gives back what was pushed, in as many bits as the entropy, and its own initial bits at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.coding.message import CodingError, Message, random_words
from diffpipe.errors import UserError

N = 50_000


def test_normal_symbols_take_their_entropy() -> None:
    draws = np.random.default_rng(0)
    mean, std = draws.uniform(-0.5, 0.5, N), np.full(N, 6.0)
    symbols = np.clip(np.rint(draws.normal(mean, std)), -40, 40).astype(np.int64)
    message = Message()
    message.push_normal(symbols, mean, std, 40)
    entropy = math.log2(6 * math.sqrt(2 * math.pi * math.e))
    assert message.bits / N == pytest.approx(entropy, abs=0.02)  # the sample's own error is 0.005
    decoder = Message(words=message.words())
    assert np.array_equal(decoder.pop_normal(mean, std, 40), symbols)
    assert decoder.is_initial()


def test_categorical_symbols_take_minus_log_p() -> None:
    draws = np.random.default_rng(1)
    probabilities = draws.dirichlet(np.full(256, 0.3), size=5000)
    symbols = np.array([draws.choice(256, p=row) for row in probabilities])
    message = Message()
    message.push_categorical(symbols, probabilities)
    bits = -np.log2(probabilities[np.arange(5000), symbols]).sum()
    assert message.bits == pytest.approx(bits, abs=100)
    decoder = Message(words=message.words())
    assert np.array_equal(decoder.pop_categorical(probabilities), symbols)
    assert decoder.is_initial()


def test_a_level_without_probability_costs_24_bits_and_is_coded() -> None:
    message, probabilities = Message(), np.tile([1.0, 0.0, 0.0], (100, 1))
    message.push_categorical(np.full(100, 2), probabilities)
    assert message.bits == pytest.approx(2400, abs=64)
    assert np.array_equal(Message(words=message.words()).pop_categorical(probabilities), np.full(100, 2))


def test_uniform_symbols_take_the_logarithm_of_their_number() -> None:
    symbols = np.random.default_rng(2).integers(0, 1000, N)
    message = Message()
    message.push_uniform(symbols, 1000)
    assert message.bits / N == pytest.approx(math.log2(1000), rel=1e-3)
    assert np.array_equal(Message(words=message.words()).pop_uniform(N, 1000), symbols)


def test_what_is_popped_first_is_a_sample_and_takes_initial_bits() -> None:
    mean, std = np.zeros(N), np.full(N, 10.0)
    encoder = Message(key=7)
    symbols = encoder.pop_normal(mean, std, 65)
    assert symbols.std() == pytest.approx(10, rel=0.02)
    assert encoder.initial_bits / N == pytest.approx(math.log2(10 * math.sqrt(2 * math.pi * math.e)), rel=0.01)
    encoder.push_normal(symbols, mean, std, 65)  # the same bits again
    decoder = Message(7, encoder.words())
    assert np.array_equal(decoder.pop_normal(mean, std, 65), symbols)
    decoder.push_normal(symbols, mean, std, 65)
    assert decoder.is_initial()
    assert not Message(8, decoder.words()).is_initial()


def test_initial_words_depend_on_the_key_and_not_on_how_many_were_supplied() -> None:
    few, many = random_words(5, 3), random_words(1001, 3)
    assert np.array_equal(few, many[:5])
    assert not np.array_equal(few, random_words(5, 4))


def test_scrambling_twice_does_nothing_and_once_makes_poor_bits_good_ones() -> None:
    """Zeros pushed under wide distributions leave bits that draw no sample; scrambled ones do."""
    mean, std, zeros = np.zeros(2000), np.full(2000, 20.0), np.zeros(2000, np.int64)

    def drawn(scrambled: bool) -> np.ndarray:
        message = Message(key=1)
        message.push_normal(zeros, mean, std, 130)
        if scrambled:
            message.scramble(2000, stream=3)
        return message.pop_normal(mean, std, 130)[:1000]

    assert drawn(scrambled=False).std() < 1
    assert drawn(scrambled=True).std() == pytest.approx(20, rel=0.1)
    message = Message(key=1)
    message.push_normal(zeros, mean, std, 130)
    before = message.words()
    message.scramble(100, stream=3)
    assert not np.array_equal(message.words(), before)
    message.scramble(100, stream=3)
    assert np.array_equal(message.words(), before)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["normal", "categorical", "uniform", "draw"]), max_size=12), st.integers(0, 2**32))
def test_any_sequence_of_operations_is_undone(operations: list[str], seed: int) -> None:
    draws, message = np.random.default_rng(seed), Message(seed)
    undo: list[Callable[[Message], None]] = []
    for stream, operation in enumerate(operations):
        n = int(draws.integers(1, 40))
        mean, std, probabilities = draws.normal(size=n), draws.uniform(0.5, 5, n), draws.dirichlet(np.ones(9), n)
        symbols = draws.integers(0, 9, n)
        if operation == "normal":
            message.push_normal(symbols, mean, std, 50)
            undo.append(lambda m, a=(mean, std, 50), s=symbols: np.testing.assert_array_equal(m.pop_normal(*a), s))
        elif operation == "categorical":
            message.push_categorical(symbols, probabilities)
            undo.append(lambda m, p=probabilities, s=symbols: np.testing.assert_array_equal(m.pop_categorical(p), s))
        elif operation == "uniform":
            message.push_uniform(symbols, 9)
            undo.append(lambda m, n=n, s=symbols: np.testing.assert_array_equal(m.pop_uniform(n, 9), s))
        else:
            message.scramble(n, stream)
            drawn = message.pop_normal(mean, std, 50)
            undo.append(
                lambda m, a=(mean, std, 50), s=drawn, n=n, i=stream: (m.push_normal(s, *a), m.scramble(n, i))  # type: ignore[func-returns-value]
            )
    decoder = Message(seed, message.words())
    for action in reversed(undo):
        action(decoder)
    assert decoder.is_initial()
    assert decoder.bits == message.initial_bits + 32


def test_a_symbol_outside_its_alphabet_and_words_that_are_no_message_are_errors() -> None:
    for symbol in (6, -6, 2**40):
        with pytest.raises(CodingError):
            Message().push_normal(np.array([symbol]), np.zeros(1), np.ones(1), 5)
    with pytest.raises(CodingError, match="never ends in a zero word"):
        Message(words=np.array([1, 0], np.uint32))


def test_a_distribution_that_is_not_finite_is_refused() -> None:
    zero = np.zeros(2)
    for mean, std in ((np.array([0, np.nan]), zero + 1), (zero, np.array([1, np.inf]))):
        with pytest.raises(UserError, match="not finite, so it codes no image"):
            Message().push_normal(np.zeros(2, np.int64), mean, std, 5)
    with pytest.raises(UserError, match="not finite"):
        Message().pop_categorical(np.full((2, 3), np.nan))
