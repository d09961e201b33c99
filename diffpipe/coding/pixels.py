"""Pixels, coded under a distribution over their 256 levels each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from diffpipe.coding.message import Message

LEVELS = 256
_CHUNK = 1 << 14  # pixels whose distributions are held at a time: 32 MB

PixelProbabilities = Callable[[slice], np.ndarray]
"""The probabilities of these pixels' levels, float64 [n 256]."""


def push_pixels(message: Message, levels: Int64[np.ndarray, " n"], probabilities: PixelProbabilities) -> None:
    """Code pixels, each under its own distribution."""
    for part in reversed(_parts(len(levels))):
        message.push_categorical(levels[part], probabilities(part))


def pop_pixels(message: Message, n: int, probabilities: PixelProbabilities) -> Int64[np.ndarray, " n"]:
    """The pixels of `push_pixels`."""
    return np.concatenate([message.pop_categorical(probabilities(part)) for part in _parts(n)])


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, n)) for start in range(0, n, _CHUNK)]
