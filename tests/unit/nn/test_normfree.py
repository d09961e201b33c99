"""Residual blocks without normalization: they start as the identity, with signals that do not grow with depth."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from diffpipe.nn.normfree import NormFreeBlock
from tests.support.randomized import normal, randomized


def test_a_new_block_is_the_identity() -> None:
    x = normal(2, 4, 5, 5)
    assert torch.equal(NormFreeBlock(4, depth=3)(x), x)


@pytest.mark.parametrize("depth", [1, 16])
def test_the_first_weights_are_he_normal_over_the_root_of_the_depth(depth: int) -> None:
    """He et al. 2015, equation 15: variance 2 / ((1 + slope²) fan_in), here divided by the depth (Fixup)."""
    torch.manual_seed(0)
    weight = NormFreeBlock(64, depth).conv1.weight
    expected = 2 / (1 + 0.2**2) / (64 * 9) / depth
    assert weight.var().item() == pytest.approx(expected, rel=0.05)


def test_it_adds_two_convolutions_of_leaky_rectified_inputs() -> None:
    block, x = randomized(NormFreeBlock(4, depth=2)), normal(2, 4, 5, 5)
    assert isinstance(block, NormFreeBlock)
    h = F.conv2d(torch.where(x > 0, x, 0.2 * x), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.conv2d(torch.where(h > 0, h, 0.2 * h), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x), x + h)
