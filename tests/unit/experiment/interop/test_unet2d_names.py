"""Our UNet's modules by diffusers' names, in both directions, and the same function with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import UNet2DModel

from diffpipe.experiment.interop.renaming import to_ours, to_theirs
from diffpipe.experiment.interop.unet2d_names import current_name, unet2d_names
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square
from tests.support.randomized import randomized

CASES = {
    "attention between": ((False, True, False), 2, None),
    "attention at the ends": ((True, False, True), 1, None),
    "one level": ((True,), 2, None),
    "classes": ((False, True), 1, 4),
}


def theirs(attends: Sequence[bool], blocks: int, rows: int | None, network: UNetConfig) -> UNet2DModel:
    down = ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends]
    up = ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)]
    return UNet2DModel(
        sample_size=8,
        freq_shift=network.frequency_shift,
        flip_sin_to_cos=network.cos_first,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(16 * (1 + i) for i in range(len(attends))),
        layers_per_block=blocks,
        downsample_padding=0 if network.downsample_padding == "end" else 1,
        attention_head_dim=None,
        norm_num_groups=4,
        norm_eps=network.norm_eps,
        num_class_embeds=rows,
    )


@pytest.mark.parametrize("case", CASES)
def test_with_their_weights_ours_computes_what_theirs_does(case: str) -> None:
    attends, blocks, rows = CASES[case]
    attention = tuple(8 >> i for i, attention in enumerate(attends) if attention)
    mult = tuple(1 + i for i in range(len(attends)))
    network = UNetConfig(channels=16, channel_mult=mult, blocks=blocks, attention=attention, groups=4, dropout=0)
    net, names = UNet(network, 3, square(8), classes=(rows or 1) - 1), unet2d_names(attends, blocks)
    other = randomized(theirs(attends, blocks, rows, network)).eval()
    net.load_state_dict(to_ours(other.state_dict(), names))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    labels = None if rows is None else torch.tensor([1, rows - 1])
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x, t, labels), other(x, t, labels).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_every_tensor_is_the_same(case: str) -> None:
    attends, blocks, rows = CASES[case]
    tensors = theirs(attends, blocks, rows, UNetConfig()).state_dict()
    names = unet2d_names(attends, blocks)
    again = to_theirs(to_ours(tensors, names), names)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_names_before_version_0_16_are_renamed() -> None:
    assert current_name("mid_block.attentions.0.query.weight") == "mid_block.attentions.0.to_q.weight"
    assert current_name("mid_block.attentions.0.proj_attn.bias") == "mid_block.attentions.0.to_out.0.bias"
    assert current_name("mid_block.attentions.0.to_out.0.bias") == "mid_block.attentions.0.to_out.0.bias"
    assert current_name("down_blocks.0.resnets.0.conv1.bias") == "down_blocks.0.resnets.0.conv1.bias"
