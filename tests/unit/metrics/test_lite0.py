"""EfficientNet-Lite0 against the network built from modules, and against its weights' own package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.metrics.features import efficientnet_lite0
from diffpipe.metrics.perceptual import build_feature_maps
from diffpipe.resolution import square
from tests.support.lite0_modules import lite0_modules


def pattern() -> torch.Tensor:
    """An RGB image of 224 px: stripes and curves of all intensities."""
    i = torch.arange(224)
    rows, columns = i[:, None], i[None]
    channels = ((rows * 3 + columns * 5) % 256, (rows * columns) % 256, (rows * 7 + 255 - columns) % 256)
    return torch.stack(channels)[None].to(torch.uint8)


def test_efficientnet_equals_the_network_built_from_modules() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8))
    x = torch.cat([pattern(), noise])
    with torch.no_grad():
        expected = lite0_modules()((x.float() - 127) / 128)
    torch.testing.assert_close(efficientnet_lite0(224)(x), expected, rtol=1e-4, atol=1e-4)


def test_efficientnet_gives_the_numbers_of_the_weights_own_package() -> None:
    # The pooled `extract_features` of efficientnet-lite-pytorch 0.1.0, which these weights were published for. With its
    # classifier and this input scaling it calls matplotlib's portrait of Grace Hopper a military uniform.
    y = efficientnet_lite0(224)(pattern())[0]
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0444582, 0.0939750, 0.2627051, 0.0, 0.0368409])
    torch.testing.assert_close(y[:8], expected, rtol=1e-4, atol=1e-5)
    assert y.norm().item() == pytest.approx(20.876415, rel=1e-5)
    assert y.sum().item() == pytest.approx(242.004944, rel=1e-5)
    assert y.argmax().item() == 920


def test_lite0s_maps_are_those_of_the_modules_up_to_the_last_of_four_places() -> None:
    maps, sha256 = build_feature_maps("efficientnet_lite0", square(64))
    assert sha256.startswith("57934424")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    h, blocks = ((x + 1) * 127.5 - 127) / 128, []
    with torch.no_grad():
        for layer in lite0_modules()[:17]:  # pyright: ignore[reportIndexIssue]
            h = layer(h)
            blocks.append(h)
    expected = [next(b for b in reversed(blocks[1:]) if b.shape[2] == side) for side in (32, 16, 8, 4)]
    assert [m.shape for m in maps(x)] == [m.shape for m in expected]
    for a, b in zip(maps(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert [m.shape[2] for m in maps(x[..., :28, :28])] == [14, 7, 4]
