"""The blocks of the convolutional networks, against torch's own modules and as they start."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.nn import functional as F

from diffpipe.nn.blocks import (
    Downsample,
    ResBlock,
    SelfAttention,
    Upsample,
    res_blocks,
    sinusoidal_embedding,
    zero_init,
)
from tests.support.randomized import normal, randomized


def test_the_embedding_holds_sines_and_cosines_of_every_frequency() -> None:
    e = sinusoidal_embedding(torch.tensor([0, 3]), 8, shift=0)
    assert torch.equal(e[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(e[1, 1], torch.sin(torch.tensor(3 * 10_000 ** (-1 / 4))))
    torch.testing.assert_close(sinusoidal_embedding(torch.tensor([3]), 8)[0, 3], torch.sin(torch.tensor(3 / 10_000)))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cos_first", [True, False])
@pytest.mark.parametrize("t", [torch.tensor([0, 3, 999]), torch.tensor([0.25, 731.5])])
def test_the_embedding_is_that_of_diffusers(t: torch.Tensor, cos_first: bool, shift: int) -> None:
    expected = get_timestep_embedding(t, 10, flip_sin_to_cos=cos_first, downscale_freq_shift=shift)
    assert torch.equal(sinusoidal_embedding(t, 10, shift=shift, cos_first=cos_first), expected)


def test_a_time_of_float64_keeps_its_digits() -> None:
    t = torch.tensor([999.000001], dtype=torch.float64)
    torch.testing.assert_close(sinusoidal_embedding(t, 4)[0, 0], t[0].sin(), rtol=1e-12, atol=0)


def test_a_residual_block_starts_as_its_skip() -> None:
    x, emb = normal(2, 8, 4, 4), normal(2, 6)
    same, wider = ResBlock(8, 8, 6, 4, dropout=0.0), ResBlock(8, 12, 6, 4, dropout=0.0)
    assert torch.equal(same(x, emb), x)
    assert torch.equal(wider(x, emb), wider.skip(x))


def test_the_embedding_is_added_between_the_convolutions() -> None:
    block = randomized(ResBlock(8, 8, 6, 4, dropout=0.0))
    assert isinstance(block, ResBlock)
    assert block.emb is not None
    x, emb = normal(2, 8, 4, 4), normal(2, 6)
    h = block.conv1(F.silu(F.group_norm(x, 4, block.norm1.weight, block.norm1.bias)))
    h = h + (emb @ block.emb.weight.T + block.emb.bias)[:, :, None, None]
    h = block.conv2(F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias)))
    torch.testing.assert_close(block(x, emb), x + h)


def test_attention_is_torchs_multi_head_attention_over_the_pixels() -> None:
    layer = randomized(SelfAttention(8, heads=2, groups=4))
    assert isinstance(layer, SelfAttention)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": layer.qkv.weight,
            "in_proj_bias": layer.qkv.bias,
            "out_proj.weight": layer.out.weight,
            "out_proj.bias": layer.out.bias,
        }
    )
    x = normal(3, 8, 4, 5)
    tokens = layer.norm(x).flatten(2).mT
    expected = reference(tokens, tokens, tokens, need_weights=False)[0].mT.reshape(x.shape)
    torch.testing.assert_close(layer(x), x + expected, rtol=1e-4, atol=1e-5)


def test_resolutions_are_doubled_by_nearest_neighbours_and_halved() -> None:
    x = normal(1, 3, 4, 6)
    up = Upsample(3)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(doubled))
    down = Downsample(3)
    assert down(x).shape == (1, 3, 2, 3)
    end = Downsample(3, "end")
    torch.testing.assert_close(end(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), end.weight, end.bias, stride=2))


def test_only_the_first_of_several_blocks_changes_the_channels() -> None:
    first, *others = res_blocks(4, 8, 3, None, 4)
    assert first(normal(1, 4, 2, 2)).shape == (1, 8, 2, 2)
    assert [other(normal(1, 8, 2, 2)).shape for other in others] == [(1, 8, 2, 2)] * 2
    assert all(torch.count_nonzero(p) == 0 for p in zero_init(nn.Conv2d(2, 2, 3)).parameters())
