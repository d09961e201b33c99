"""The transformer over codes: what each token sees, in raster order and by scales, and the same with caches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffpipe.nn.code_transformer import CodeDecoder, CodeGrid, CodeTransformer
from diffpipe.nn.transformer import TransformerConfig
from diffpipe.resolution import Resolution
from tests.support.randomized import normal, randomized

RASTER = CodeGrid(11, 3, (Resolution(3, 4),))
SCALES = CodeGrid(11, 3, (Resolution(1, 2), Resolution(2, 3), Resolution(3, 4)))
GRIDS = {"raster": RASTER, "scales": SCALES}
every_order = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def network(grid: CodeGrid, **changes: object) -> CodeTransformer:
    config = TransformerConfig.model_validate({"width": 16, "depth": 2, "heads": 2, **changes})
    net = randomized(CodeTransformer(config, grid, classes=4))
    assert isinstance(net, CodeTransformer)
    return net.requires_grad_(False)


def inputs(grid: CodeGrid, b: int = 2) -> Tensor:
    """Those of all tokens after the first group."""
    m = grid.tokens - grid.groups[0]
    return normal(b, m, grid.channels) if grid.by_scale else torch.arange(b * m).reshape(b, m) * 7 % grid.codes


def test_a_token_is_predicted_with_those_of_its_group() -> None:
    assert RASTER.groups == 12 * [1]
    assert SCALES.groups == [2, 6, 12]
    visible = SCALES.visible(torch.device("cpu"))
    for i, j in [(0, 1), (1, 0), (2, 7), (7, 0), (19, 8), (8, 19)]:
        assert visible[i, j]
    for i, j in [(0, 2), (7, 8), (1, 19)]:
        assert not visible[i, j]


def test_small_scales_lie_in_the_middle_of_their_areas() -> None:
    places = SCALES.places(torch.device("cpu"))
    assert places[:2].tolist() == [[1.0, 0.5], [1.0, 2.5]]
    assert places[8:].tolist() == [[row, column] for row in range(3) for column in range(4)]


@every_order
@pytest.mark.parametrize("changes", [{}, {"rope": "1d"}, {"rope": "none", "qk_norm": True}])
def test_nothing_leaks_from_later_groups(grid: CodeGrid, changes: dict[str, object]) -> None:
    """By gradients: the logits of a group depend on the inputs of all groups up to its own, and of no later one."""
    net, groups = network(grid, **changes), grid.groups
    x = inputs(grid)
    e = (net.input(x) if not grid.by_scale else x).detach().requires_grad_()
    if not grid.by_scale:
        net.add_module("input", torch.nn.Identity())
    starts = torch.tensor([0, *groups]).cumsum(0).tolist()
    logits = net(e, torch.tensor([1, 3]))
    for group in range(len(groups)):
        (gradient,) = torch.autograd.grad(
            logits[:, starts[group] : starts[group + 1]].sum(), e, retain_graph=True, allow_unused=True
        )
        reached = gradient.abs().sum((0, 2)) > 0
        known = starts[group + 1] - groups[0]
        assert reached[:known].all()
        assert not reached[known:].any()


@every_order
@pytest.mark.parametrize("changes", [{}, {"mlp": "gelu", "norm": "layer", "rope": "1d"}])
@pytest.mark.parametrize("labels", [None, torch.tensor([1, 3])])
def test_group_by_group_with_caches_it_gives_the_logits_of_one_pass(
    grid: CodeGrid, changes: dict[str, object], labels: Tensor | None
) -> None:
    net, x = network(grid, **changes), inputs(grid)
    decoder = CodeDecoder(net, 2, labels)
    parts = [decoder.next(None), *map(decoder.next, x.split(grid.groups[1:], dim=1))]
    torch.testing.assert_close(torch.cat(parts, dim=1), net(x, labels), rtol=1e-5, atol=1e-5)


@every_order
def test_the_class_is_seen_by_every_token_and_none_is_the_empty_label(grid: CodeGrid) -> None:
    net, x = network(grid), inputs(grid)
    none, two = net(x), net(x, torch.tensor([2, 2]))
    assert ((none - two).abs().amax((0, 2)) > 1e-6).all()
    assert torch.equal(none, net(x, torch.tensor([4, 4])))
