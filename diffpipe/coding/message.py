"""A message: a stack of bits that symbols are pushed onto and popped from. The only module that imports constriction.

The coder is constriction's ANS coder (asymmetric numeral systems, Duda et al. 2015): a state of 64 bits over a stack of
32-bit words, with frequencies of 24 bits. A symbol pushed under p adds -log2 p bits, and one popped under p takes as
many: popping draws a sample with the message's bits as the randomness (Townsend et al. 2019, "bits back").

What constriction was measured to do: on two million symbols a message is 0.01% above their entropy. Every symbol of an
alphabet of k keeps at least the frequency 1, so that k / 2^24 of the probability goes evenly to all: 3e-6 for 50
symbols, but 0.4% for 65,536, hence the narrow windows of `grid`. A symbol outside the alphabet is an error. Popping
from an empty stack is none, and not reversible: `Message` puts initial words beneath before that. Its arithmetic is
compiled in, with no call into the system's mathematics library.
"""

from __future__ import annotations

from typing import Any, cast

import constriction
import numpy as np
from jaxtyping import Float64, Int64, UInt32

from diffpipe.errors import UserError
from diffpipe.rng import fold_in, philox

_STREAM: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] (a part of the compiled module)
_STACK, _MODELS = _STREAM.stack, _STREAM.model
_STATE = 2  # words of the coder's state
_MOST_BITS = 24  # of one symbol
_MIXED_BITS = 16  # of one symbol, on average
_LARGEST_UNIFORM = 1 << 16
_FAR = 1 << 30  # beyond every alphabet


class CodingError(Exception):
    """A symbol that its distribution does not have, or words that are no message: something else was encoded."""


class Message:
    """A stack of bits. What was pushed last is popped first.

    key: of the initial words, which lie at the bottom. The encoder of a bits-back code pops before it has pushed
    enough: it takes these random words, which depend on the key and their number alone, and the decoder ends with them.
    """

    def __init__(self, key: int = 0, words: UInt32[np.ndarray, " n"] | None = None):
        """words: those of a written message, to decode; None: an empty one. Raises CodingError for other words."""
        self._key, self._encodes = key, words is None
        if words is None:  # a whole state: what is put beneath a smaller one would be popped before it
            words = np.append(self._initial_words(0, _STATE - 1), np.array([1], np.uint32))
        try:
            self._coder = _STACK.AnsCoder(words)
        except ValueError as error:
            raise CodingError(str(error)) from error
        self._initial = _STATE - 1  # words put beneath, so far
        self._least = _STATE  # words of the lowest stack that was popped from

    def words(self) -> UInt32[np.ndarray, " n"]:
        """The message, without the initial words that were never reached."""
        return self._coder.get_compressed()[self._untouched :]

    @property
    def bits(self) -> int:
        """The length of `words`."""
        return 32 * (self._coder.num_words() - self._untouched)

    @property
    def initial_bits(self) -> int:
        """The bits among them that the message began with."""
        return 32 * (self._initial - self._untouched)

    def is_initial(self) -> bool:
        """Whether only initial words are left, as after decoding all that was encoded."""
        words = self._coder.get_compressed()
        return bool(words[-1] == 1 and np.array_equal(words[:-1], self._initial_words(0, len(words) - 1)))

    def push_normal(
        self,
        symbols: Int64[np.ndarray, " n"],
        mean: Float64[np.ndarray, " n"],
        std: Float64[np.ndarray, " n"],
        reach: int,
    ) -> None:
        """Integers from -reach to reach, each under a normal distribution cut into bins of width 1."""
        _require_finite(mean, std)
        self._push(symbols, _MODELS.QuantizedGaussian(-reach, reach), mean, std)

    def pop_normal(
        self, mean: Float64[np.ndarray, " n"], std: Float64[np.ndarray, " n"], reach: int
    ) -> Int64[np.ndarray, " n"]:
        """The integers of `push_normal`."""
        _require_finite(mean, std)
        return self._pop(len(mean), _MODELS.QuantizedGaussian(-reach, reach), mean, std)

    def push_categorical(self, symbols: Int64[np.ndarray, " n"], probabilities: Float64[np.ndarray, "n k"]) -> None:
        """Integers from 0 to k - 1, each under its row of probabilities, which need not sum to 1 exactly."""
        _require_finite(probabilities)
        self._push(symbols, _MODELS.Categorical(perfect=False), probabilities)

    def pop_categorical(self, probabilities: Float64[np.ndarray, "n k"]) -> Int64[np.ndarray, " n"]:
        """The integers of `push_categorical`."""
        _require_finite(probabilities)
        return self._pop(len(probabilities), _MODELS.Categorical(perfect=False), probabilities)

    def push_uniform(self, symbols: Int64[np.ndarray, " n"], size: int) -> None:
        """Integers from 0 to size - 1, all equally likely. size: at most 65,536."""
        assert size <= _LARGEST_UNIFORM
        self._push(symbols, _MODELS.Uniform(size))

    def pop_uniform(self, n: int, size: int) -> Int64[np.ndarray, " n"]:
        """The n integers of `push_uniform`."""
        assert size <= _LARGEST_UNIFORM
        return self._pop(n, _MODELS.Uniform(size), n)

    def scramble(self, n: int, stream: int) -> None:
        """Exclusive-or the words that n symbols are popped from with random ones. A second time it undoes itself.

        A popped symbol is a sample only where the message's bits are random, and those of a symbol that was just pushed
        are as random as its model is good: without this, a poorly trained diffusion took 2% more. stream: of the random
        words, which depend on it and on the key.
        """
        if self._encodes:
            self._supply(n)
        words = self._coder.get_compressed()
        mixed = words[max(0, len(words) - 1 - _MIXED_BITS * n // 32) : -1]  # the last word is never 0
        mixed ^= random_words(len(mixed), fold_in(self._key, "scramble", stream))[::-1]
        self._coder = _STACK.AnsCoder(words)

    @property
    def _untouched(self) -> int:
        """Initial words that no pop has reached. The lowest two of a stack are its state."""
        return min(self._initial, max(0, self._least - _STATE))

    def _push(self, symbols: Int64[np.ndarray, " n"], model: Any, *parameters: Any) -> None:
        try:
            self._coder.encode_reverse(symbols.clip(-_FAR, _FAR).astype(np.int32), model, *parameters)
        except KeyError as error:
            raise CodingError(str(error)) from error

    def _pop(self, n: int, model: Any, *parameters: Any) -> Int64[np.ndarray, " n"]:
        if self._encodes:
            self._supply(n)
        symbols = self._coder.decode(model, *parameters)
        words = self._coder.num_words()
        if words < _STATE:  # an encoder has put more beneath
            raise CodingError("more symbols are popped than were pushed")
        self._least = min(self._least, words)
        return cast(np.ndarray, symbols).astype(np.int64)

    def _supply(self, n: int) -> None:
        """Put initial words beneath a stack that has fewer than popping n symbols may take."""
        missing = n * _MOST_BITS // 32 + 2 * _STATE - self._coder.num_words()
        if missing > 0:
            beneath = self._initial_words(self._initial, missing)
            self._coder = _STACK.AnsCoder(np.concatenate([beneath, self._coder.get_compressed()]))
            self._initial += missing
            self._least += missing

    def _initial_words(self, start: int, n: int) -> UInt32[np.ndarray, " n"]:
        """n initial words, of which word `start` is the uppermost and comes last."""
        return random_words(start + n, fold_in(self._key, "initial bits"))[start:][::-1]


def random_words(n: int, key: int) -> UInt32[np.ndarray, " n"]:
    """n random words. The first ones do not depend on n."""
    i = np.arange(-(-n // 4), dtype=np.int64)
    zero = np.zeros_like(i)
    return np.stack(philox(i, zero, zero, zero, key), axis=1).astype(np.uint32).ravel()[:n]


def _require_finite(*values: np.ndarray) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise UserError("the run's distributions are not finite, so it codes no image; look at the training's loss")
