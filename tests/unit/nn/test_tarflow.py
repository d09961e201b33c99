"""TarFlow: inverse, log-determinant, causality, and decoding with and without its cache."""

from __future__ import annotations

import pytest
import torch

from diffpipe.nn.tarflow import AutoregressiveBlock, TarFlow, TarFlowConfig
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized

SMALL = TarFlowConfig(kind="tarflow", patch=2, width=16, blocks=3, layers=2, heads=2)
CLASSES = pytest.mark.parametrize("classes", [0, 3])
LABELS = torch.tensor([0, 1, 2])


def block(classes: int) -> AutoregressiveBlock:
    torch.manual_seed(0)
    net = randomized(AutoregressiveBlock(SMALL, tokens=9, dim=4, classes=classes), std=0.2)
    assert isinstance(net, AutoregressiveBlock)
    return net


@CLASSES
@pytest.mark.parametrize("blocks", [2, 3])
def test_it_is_inverted(classes: int, blocks: int) -> None:
    torch.manual_seed(0)
    net = randomized(TarFlow(SMALL.model_copy(update={"blocks": blocks}), 1, square(28), classes))
    x = normal(3, 1, 28, 28)
    with torch.no_grad():
        z, log_det = net(x, LABELS)
        inverse = net.inverse(z, LABELS)  # pyright: ignore[reportCallIssue]
    assert z.shape == x.shape
    assert log_det.shape == (3,)
    assert (inverse - x).abs().max() < 1e-4
    assert (z - x).abs().max() > 0.1


@CLASSES
def test_its_log_determinant_is_that_of_its_jacobian(classes: int) -> None:
    torch.manual_seed(0)
    net = randomized(TarFlow(SMALL, 2, square(4), classes)).double()
    x = normal(3, 2, 4, 4).double()
    _, log_det = net(x, LABELS)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one, i=i: net(one[None], LABELS[i : i + 1])[0][0], x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(32, 32)).logabsdet
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


@CLASSES
def test_a_token_depends_on_itself_and_those_before(classes: int) -> None:
    net, x = block(classes), normal(3, 9, 4)
    jacobian = torch.autograd.functional.jacobian(lambda t: net(t[None], LABELS[1:2])[0][0], x[1])
    depends = jacobian.abs().amax((1, 3)) > 0  # [token of z, token of x]
    assert torch.equal(depends, torch.ones(9, 9).tril().bool())


def test_blocks_read_in_alternating_order() -> None:
    torch.manual_seed(0)
    last = 15  # the last of 4 x 4 tokens, at the image's lower right
    x = normal(1, 1, 8, 8)
    moved = x.clone()
    moved[:, :, 6:, 6:] += 1
    for blocks, seen in ((1, False), (2, True)):
        net = randomized(TarFlow(SMALL.model_copy(update={"blocks": blocks}), 1, square(8)))
        with torch.no_grad():
            change = net.tokens(net(moved)[0] - net(x)[0]).abs().amax((0, 2))  # pyright: ignore[reportCallIssue]
        first = change if blocks % 2 == 0 else change.flip(0)  # each block leaves the tokens in the other order
        assert first[last] > 0
        assert (first[0] > 0) == seen


@CLASSES
def test_cached_decoding_is_the_uncached_inversion(classes: int) -> None:
    net, z = block(classes), normal(3, 9, 4)
    x = torch.zeros_like(z)
    with torch.no_grad():
        for i in range(z.shape[1]):  # z_i is linear in x_i: two full passes give its offset and its slope
            at_zero = net(x, LABELS)[0][:, i]
            x[:, i] = 1
            x[:, i] = (z[:, i] - at_zero) / (net(x, LABELS)[0][:, i] - at_zero)
        torch.testing.assert_close(net.inverse(z, LABELS), x, rtol=0, atol=1e-4)


def test_what_is_added_to_tokens_starts_small() -> None:
    """As in the code of Zhai et al. 2024, where positions and classes are drawn with standard deviation 0.01."""
    torch.manual_seed(0)
    net = AutoregressiveBlock(SMALL.model_copy(update={"width": 256}), tokens=49, dim=4, classes=40)
    assert net.label is not None
    for added in (net.start, net.position, net.label.weight):
        assert added.std().item() == pytest.approx(0.01, rel=0.15)
