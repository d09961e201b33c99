"""The scale of latents: measured against numpy, and undone by its inverse."""

from __future__ import annotations

import numpy as np
import torch

from diffpipe.nn.latent_scale import LatentScale
from tests.support.randomized import normal


def test_it_is_the_identity_until_it_is_measured() -> None:
    z = normal(2, 3, 4, 4)
    assert torch.equal(LatentScale(3)(z), z)
    assert list(LatentScale(3).parameters()) == []


def test_measured_latents_come_out_standardized_and_go_back() -> None:
    offset, scale = torch.tensor([100.0, -3.0, 0.0])[:, None, None], torch.tensor([0.01, 5.0, 1.0])[:, None, None]
    z = offset + scale * normal(64, 3, 4, 4)
    layer = LatentScale(3)
    layer.start(z)
    values = z.double().numpy()
    np.testing.assert_allclose(layer.mean.flatten(), values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(layer.std.flatten(), values.std((0, 2, 3)), rtol=1e-6)
    x = layer(z)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(layer.inverse(x), z)


def test_given_numbers_are_used_and_saved() -> None:
    layer = LatentScale(2, mean=[1.0, -2.0], std=[2.0, 4.0])
    x = torch.stack([torch.full((3, 3), 5.0), torch.full((3, 3), 6.0)])[None]
    assert torch.equal(layer(x), torch.full((1, 2, 3, 3), 2.0))
    loaded = LatentScale(2)
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(x), layer(x))
