"""The codes are codes: the files are lossless, and the lengths of the adaptive one sum up as a code's must."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, features

from diffpipe.errors import UserError
from diffpipe.metrics.complexity import FORMATS, adaptive_bits, coded, complexity

NOISE = np.random.default_rng(0).integers(0, 256, (1, 3, 28, 28), dtype=np.uint8)
RAMP = (np.add.outer(np.arange(28) ** 2 / 8, np.arange(28) * 4)[None, None]).astype(np.uint8)  # up to 199


@pytest.mark.parametrize("size", [(28, 28), (32, 5), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_holds_the_very_image(name: str, channels: int, size: tuple[int, int]) -> None:
    smooth = np.sin(np.add.outer(np.arange(size[0]), np.arange(size[1])) / 9) * 100 + 128
    for image in (np.resize(NOISE, (channels, *size)), np.stack([smooth + 7 * c for c in range(channels)])):
        pixels = image.astype(np.uint8)
        with Image.open(io.BytesIO(coded(pixels, name))) as file:
            decoded = np.asarray(file.convert("L" if channels == 1 else "RGB")).reshape(*size, channels)
        assert np.array_equal(decoded.transpose(2, 0, 1), pixels)


def pairs() -> np.ndarray:
    """Every two values: [65536, 2]."""
    return np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).reshape(-1, 2).astype(np.uint8)


def shares(bits: np.ndarray) -> float:
    """The Kraft sum of a code of these lengths: at most 1 if it can be decoded, and 1 if it is full."""
    return float((2.0**-bits).sum())


def test_the_adaptive_code_can_be_decoded_row_after_row() -> None:
    assert shares(adaptive_bits(pairs().reshape(-1, 1, 1, 2))) == pytest.approx(1, rel=1e-9)
    before = NOISE[:, :1, :3, :2]
    rows = np.concatenate([before.repeat(65536, 0), pairs().reshape(-1, 1, 1, 2)], axis=2)
    assert shares(adaptive_bits(rows) - adaptive_bits(before)) == pytest.approx(1, rel=1e-9)


def test_the_adaptive_code_can_be_decoded_channel_after_channel() -> None:
    assert shares(adaptive_bits(pairs().reshape(-1, 2, 1, 1))) == pytest.approx(1, rel=1e-9)
    before = NOISE[:, :2, :1, :2]
    channels = np.concatenate([before.repeat(65536, 0), pairs().reshape(-1, 1, 1, 2)], axis=1)
    assert shares(adaptive_bits(channels) - adaptive_bits(before)) == pytest.approx(1, rel=1e-9)


def test_the_adaptive_code_comes_near_the_entropy_of_a_random_walk() -> None:
    # Its steps k have the probability (1 - r) / (1 + r) r^|k|.
    r = np.exp(-1 / 0.8)
    rng = np.random.default_rng(1)
    steps = rng.geometric(1 - r, (20, 1500)) - rng.geometric(1 - r, (20, 1500))
    walk = 128 + steps.cumsum(axis=1)
    assert 0 <= walk.min() <= walk.max() < 256
    k = np.arange(-60, 61)
    p = (1 - r) / (1 + r) * r ** np.abs(k)
    entropy = -(p * np.log2(p)).sum()
    bits = adaptive_bits(walk.astype(np.uint8).reshape(20, 1, 1, 1500)).mean() / 1500
    assert bits == pytest.approx(entropy, rel=0.06)


def test_channels_that_go_alike_cost_little_more_than_one() -> None:
    walk = (128 + np.random.default_rng(2).integers(-9, 10, (1, 1, 28, 28)).cumsum(axis=-1)).clip(0, 255)
    colour = np.concatenate([walk, (walk + 20).clip(0, 255), walk], axis=1).astype(np.uint8)
    assert adaptive_bits(colour)[0] < 1.3 * adaptive_bits(colour[:, :1])[0]


def bits(image: np.ndarray) -> float:
    return float(complexity(torch.from_numpy(image))[0])


def test_noise_is_complex_and_a_flat_image_is_not() -> None:
    assert bits(NOISE) == pytest.approx(8, rel=0.05)
    assert bits(NOISE[:, :1]) == pytest.approx(8, rel=0.05)
    assert bits(np.full((1, 1, 64, 64), 9, dtype=np.uint8)) < 0.05


def test_the_shortest_code_is_another_for_a_ramp_and_for_what_repeats() -> None:
    files = {name: 8 * len(coded(RAMP[0], name)) / RAMP.size for name in FORMATS}
    assert bits(RAMP) < 0.7 * min(files.values())  # the adaptive code
    tiled = np.tile(NOISE[:, :1], (1, 1, 3, 3))  # 8 bits for a ninth of the pixels
    assert 8 / 9 < bits(tiled) < 1.5
    assert adaptive_bits(tiled)[0] / tiled.size > 7


def test_a_pillow_without_a_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(UserError, match="this Pillow lacks WEBP"):
        complexity(torch.from_numpy(RAMP))
