"""Pixels as tokens: their order, and what the input of each token shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffpipe.nn.pixel_tokens import CausalNeighbourhood, PixelGrid, PreviousToken, ValueEmbedding
from diffpipe.resolution import Resolution

SIZE, DIM, LEVELS = Resolution(4, 5), 4, 7
GRIDS = pytest.mark.parametrize(("channels", "parts"), [(1, 1), (3, 1), (3, 3)])


def grid(channels: int, parts: int) -> PixelGrid:
    return PixelGrid(channels, SIZE, LEVELS, parts)


def images(channels: int) -> Tensor:
    return torch.randint(LEVELS, (2, channels, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@GRIDS
def test_tokens_are_in_raster_order_with_the_channels_of_a_pixel_together(channels: int, parts: int) -> None:
    g, x = grid(channels, parts), images(channels)
    tokens = g.split(x)
    assert tokens.shape == (2, g.tokens, g.values)
    assert torch.equal(g.join(tokens), x)
    for i in range(g.tokens):
        row, column, part = g.place(i)
        assert torch.equal(tokens[:, i], x[:, part * g.values : (part + 1) * g.values, row, column].long())
    assert [g.place(i) for i in range(g.tokens)] == sorted(g.place(i) for i in range(g.tokens))
    assert g.row == SIZE.width * parts


def test_values_start_near_those_that_are_alike() -> None:
    table = ValueEmbedding(PixelGrid(1, SIZE, 256, 1), 16).table.weight
    distance = torch.cdist(table, table)
    assert (distance[100, 101:] > distance[100, 101] - 1e-6).all()
    assert distance[100, 101] < 0.5 * distance[100, 200]


@GRIDS
def test_embeddings_of_an_image_and_of_a_pixel_agree(channels: int, parts: int) -> None:
    g, x = grid(channels, parts), images(channels)
    net = ValueEmbedding(g, DIM)
    torch.nn.init.normal_(net.table.weight)
    whole = net(x)
    for part in range(parts):
        values = x[:, part * g.values : (part + 1) * g.values, 2, 1].long()
        first = part * g.values
        of_pixel = whole[:, first * DIM : (first + g.values) * DIM, 2, 1]
        assert torch.equal(net.of_channels(values, first), of_pixel)


def stems(g: PixelGrid) -> dict[int, CausalNeighbourhood | PreviousToken]:
    torch.manual_seed(0)
    return {0: PreviousToken(g, DIM, 6), 1: CausalNeighbourhood(g, DIM, 6, 1), 3: CausalNeighbourhood(g, DIM, 6, 3)}


@GRIDS
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_an_input_shows_the_tokens_within_reach_before_it_and_no_other(channels: int, parts: int, reach: int) -> None:
    g = grid(channels, parts)
    stem = stems(g)[reach]
    e = torch.randn(1, channels * DIM, *SIZE, generator=torch.Generator().manual_seed(1), requires_grad=True)
    h = stem(e)
    assert h.shape == (1, g.tokens, 6)
    for i in range(g.tokens):
        (gradient,) = torch.autograd.grad(h[0, i].square().sum(), e, retain_graph=True)
        shown = gradient.unflatten(1, (channels, DIM)).abs().amax((0, 2)) > 0  # [channel, row, column]
        tokens = {j for j in range(g.tokens) if shown[g.place(j).part * g.values, g.place(j).row, g.place(j).column]}
        assert tokens == {j for j in range(i) if within(g, i, j, reach)}


def within(g: PixelGrid, i: int, j: int, reach: int) -> bool:
    at, of = g.place(i), g.place(j)
    if reach == 0:
        return j == i - 1
    return at.row - of.row <= reach and abs(at.column - of.column) <= reach


@GRIDS
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_one_input_is_that_of_the_whole_image_whatever_comes_later(channels: int, parts: int, reach: int) -> None:
    g = grid(channels, parts)
    stem, e = stems(g)[reach], torch.randn(2, channels * DIM, *SIZE, generator=torch.Generator().manual_seed(1))
    whole = stem(e)
    for i in range(g.tokens):
        known = torch.stack([torch.full(SIZE, False)] * channels)
        for j in range(i):
            row, column, part = g.place(j)
            known[part * g.values : (part + 1) * g.values, row, column] = True
        later = e.unflatten(1, (channels, DIM)).where(known[:, None], 9.0).flatten(1, 2)
        torch.testing.assert_close(stem.at(later, i)[:, 0], whole[:, i], rtol=0, atol=1e-5)
