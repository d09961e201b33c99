"""The transformer over pixels: no token's output depends on it or on later ones, and one by one as all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe.nn.pixel_tokens import PixelGrid
from diffpipe.nn.pixel_transformer import PixelDecoder, PixelTransformer
from diffpipe.nn.transformer import TransformerConfig
from diffpipe.resolution import Resolution
from tests.support.randomized import randomized

SIZE, LEVELS, OUT = Resolution(3, 4), 5, 7
GRIDS = pytest.mark.parametrize(("channels", "parts"), [(1, 1), (3, 1), (3, 3)])
SETTINGS = pytest.mark.parametrize("attention", ["full", "strided"])
REACHES = pytest.mark.parametrize("reach", [0, 1, 2])


def network(channels: int, parts: int, reach: int, classes: int = 0, **changes: Any) -> PixelTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.model_validate({"width": 8, "depth": 2, "heads": 1} | changes)
    grid = PixelGrid(channels, SIZE, LEVELS, parts)
    net = randomized(PixelTransformer(config, grid, embedding=4, reach=reach, out=OUT, classes=classes), std=0.3)
    assert isinstance(net, PixelTransformer)
    return net


def images(channels: int) -> Tensor:
    return torch.randint(LEVELS, (3, channels, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@GRIDS
@SETTINGS
@REACHES
def test_the_gradient_of_an_output_is_zero_for_its_token_and_all_later_ones(
    channels: int, parts: int, attention: str, reach: int
) -> None:
    """It is not zero for any earlier one: every token sees the whole image before it."""
    net = network(channels, parts, reach, attention=attention)
    embedded: list[Tensor] = []
    net.values.register_forward_hook(lambda module, args, out: embedded.append(out.requires_grad_()) or embedded[-1])
    out = net(images(channels)[:1])
    grid = net.grid
    for i in range(grid.tokens):
        (gradient,) = torch.autograd.grad(out[0, i].square().sum(), embedded[0], retain_graph=True)
        of_channels = gradient.unflatten(1, (channels, -1)).abs().amax(2)
        tokens = (255 * (of_channels > 0)).to(torch.uint8)
        assert (grid.split(tokens)[0] > 0).all(1).tolist() == [j < i for j in range(grid.tokens)]


@GRIDS
@SETTINGS
@REACHES
def test_token_by_token_it_says_what_it_says_of_the_whole_image(
    channels: int, parts: int, attention: str, reach: int
) -> None:
    net, x, labels = network(channels, parts, reach, 3, attention=attention), images(channels), torch.tensor([2, 0, 3])
    decoder = PixelDecoder(net, 3, labels)
    with torch.no_grad():
        whole = net(x, labels)
        for i, token in enumerate(net.grid.split(x).unbind(1)):
            torch.testing.assert_close(decoder.next(), whole[:, i], rtol=0, atol=1e-5)
            decoder.push(token)


def test_the_class_reaches_every_token_from_the_first_on_and_none_is_the_empty_one() -> None:
    net, x = network(1, 1, 1, classes=2), images(1)
    with torch.no_grad():
        by_label = [net(x, torch.full((3,), label)) for label in (0, 1, 2)]
        assert torch.equal(net(x), by_label[2])
        assert ((by_label[0] - by_label[1]).abs().amax(2) > 0).all()  # of every token


def test_rotations_tell_all_tokens_apart_and_are_by_row_and_column() -> None:
    angles = network(3, 3, 1)._angles()
    assert angles is not None
    assert len(angles.unique(dim=0)) == 3 * SIZE.pixels
    by_row, by_column = angles.reshape(SIZE.height, -1, 2, 2).unbind(2)
    assert torch.equal(by_row, by_row[:, :1].expand_as(by_row))
    assert torch.equal(by_column, by_column[:1].expand_as(by_column))
    assert network(1, 1, 1, rope="none")._angles() is None


def test_every_parameter_learns() -> None:
    for channels, parts, reach in ((1, 1, 0), (3, 3, 2)):
        net = network(channels, parts, reach, classes=2, qk_norm=True).train()
        net(images(channels), torch.tensor([0, 1, 2])).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
