"""Feature maps: a distance of them grows with blur, and a plug-in's network can make them."""

from __future__ import annotations

import pytest
import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from diffpipe import plugins
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.metrics.perceptual import build_feature_maps
from diffpipe.resolution import square
from diffpipe.stages.perceptual import perceptual_distance
from tests.support.commands import SHARDS


def pictures() -> Tensor:
    shards = shard_set.load(f"{SHARDS}/test")
    return repeat(sequential_reader.images(shards, range(6), square(28), 1).float() / 127.5 - 1, "b 1 h w -> b 3 h w")


def test_the_distance_grows_with_blur_and_falls_along_its_gradient() -> None:
    maps, _ = build_feature_maps("efficientnet_lite0", square(28))
    x = pictures()
    blurred = [F.avg_pool2d(x, k, stride=1, padding=k // 2, count_include_pad=False) for k in (1, 3, 5, 9)]
    distances = torch.stack([perceptual_distance(maps, x, y) for y in blurred])
    assert torch.equal(distances[0], torch.zeros(6))
    assert (distances.diff(dim=0) > 0).all()
    y = blurred[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(perceptual_distance(maps, x, y).sum(), y)
    slope = gradient.square().sum((1, 2, 3))
    step = 1e-3 / slope.sqrt()[:, None, None, None] * gradient
    falls = (distances[1] - perceptual_distance(maps, x, y - step)) / (1e-3 * slope.sqrt())
    torch.testing.assert_close(falls, torch.ones(6), rtol=0, atol=0.1)


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


module = Maps()
vector = nn.Flatten()


def function(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :1], F.avg_pool2d(x, 2)


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks above, as a plug-in has them."""
    networks = {"module": module, "vector": vector, "function": function}
    monkeypatch.setitem(plugins._parts, "feature_networks", networks)


@pytest.mark.usefixtures("plugged_in")
def test_a_network_of_ones_own_is_frozen_and_hashed() -> None:
    maps, first = build_feature_maps("module", square(8))
    assert not any(p.requires_grad for p in module.parameters())
    assert [m.shape for m in maps(torch.zeros(2, 3, 8, 8))] == [(2, 4, 6, 6)]
    with torch.no_grad():
        module.conv.bias[0] += 1  # pyright: ignore[reportOptionalSubscript]
    assert build_feature_maps("module", square(8))[1] != first
    assert len(build_feature_maps("function", square(8))[0](torch.zeros(2, 3, 8, 8))) == 2


@pytest.mark.usefixtures("plugged_in")
def test_what_gives_no_maps_is_refused() -> None:
    with pytest.raises(UserError, match="no feature network 'vgg'; it is one of efficientnet_lite0, function, module"):
        build_feature_maps("vgg", square(8))
    with pytest.raises(UserError, match="vector gives no list of float feature maps"):
        build_feature_maps("vector", square(8))
    with pytest.raises(UserError, match="efficientnet_lite0 gives no list of float feature maps"):
        build_feature_maps("efficientnet_lite0", square(4))
