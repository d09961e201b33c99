"""Pixels by chunks: the same pixels come back, whatever the number of chunks."""

from __future__ import annotations

import numpy as np
import pytest

from diffpipe.coding import pixels
from diffpipe.coding.message import Message


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_pixels_come_back_in_the_bits_of_their_probabilities(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(pixels, "_CHUNK", chunk)
    draws = np.random.default_rng(0)
    table, levels = draws.dirichlet(np.ones(256), 30), draws.integers(0, 256, 30)
    message = Message()
    pixels.push_pixels(message, levels, lambda part: table[part])
    assert message.bits == pytest.approx(-np.log2(table[np.arange(30), levels]).sum(), abs=64)
    decoder = Message(words=message.words())
    assert np.array_equal(pixels.pop_pixels(decoder, 30, lambda part: table[part]), levels)
    assert decoder.is_initial()
