"""The patch discriminator: how much each logit sees, and that it sees one image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.nn.levels import LevelsConfig
from diffpipe.nn.patch import PatchDiscriminator
from diffpipe.resolution import square


def build(resolution: int, **config: object) -> PatchDiscriminator:
    """With random weights in every layer: some begin at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PatchDiscriminator(LevelsConfig.model_validate({"channels": 4, **config}), 1, square(resolution))
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return net


@pytest.mark.parametrize(
    ("channel_mult", "blocks", "patch"),
    # The sizes of Isola et al. 2017, table 4, and one that is counted by hand: 3 + 2·4 + 1 + 2·8.
    [((1, 2), 1, 16), ((1, 1, 1), 1, 34), ((1, 1, 1, 1), 1, 70), ((1, 2), 2, 28)],
)
def test_a_logit_sees_the_patch_that_is_stated(channel_mult: tuple[int, ...], blocks: int, patch: int) -> None:
    size = 2 * patch // 16 * 16 + 16
    net = build(size, channel_mult=channel_mult, blocks=blocks).double()
    images = torch.rand(1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    logits = net(images)
    assert logits.shape == (1, size >> (len(channel_mult) - 1), size >> (len(channel_mult) - 1))
    middle = logits.shape[1] // 2
    logits[0, middle, middle].backward()
    assert images.grad is not None
    for axis in (2, 3):
        seen = images.grad[0, 0].abs().amax(3 - axis).nonzero().flatten()
        assert seen[-1] - seen[0] + 1 == net.patch == patch


def test_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    net, images = build(16), torch.rand(6, 1, 16, 16)
    torch.testing.assert_close(net(images)[4:], net(images[4:]))


def test_in_bfloat16_the_logits_are_float32() -> None:
    net, images = build(16), torch.rand(2, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images).dtype == torch.float32
