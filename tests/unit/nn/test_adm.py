"""ADM's UNet against diffusers' with the same weights, the paper's size, and its blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.nn.adm import ADMConfig, ScaleShiftBlock
from diffpipe.resolution import square
from tests.support.diffusers_weights import adm_weights
from tests.support.randomized import normal, randomized


def config(**changes: Any) -> ADMConfig:
    tiny = {"channels": 16, "channel_mult": (1, 2, 2), "blocks": 2, "attention": (4,), "head_channels": 8, "groups": 4}
    return ADMConfig.model_validate({"kind": "adm", **tiny, "dropout": 0.0, **changes})


@pytest.mark.parametrize("t", [torch.tensor([0, 17, 999]), torch.tensor([0.5, 17.25, 998.75])])
def test_with_the_weights_of_diffusers_it_is_the_same_function(t: torch.Tensor) -> None:
    theirs = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 32, 32),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=6,
    )
    randomized(theirs)
    ours = config().build(3, square(8), classes=5, out_channels=6).eval()
    ours.load_state_dict(adm_weights(theirs.state_dict(), levels=3, blocks=2))
    x, labels = normal(3, 3, 8, 8), torch.tensor([0, 4, 5])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, labels), theirs(x, t, labels).sample, rtol=1e-5, atol=1e-5)


def test_the_default_has_the_size_that_the_paper_gives() -> None:
    # Dhariwal & Nichol 2021, table 11: 296 million parameters for ImageNet-64, with classes and learned variances.
    with torch.device("meta"):
        net = ADMConfig(kind="adm").build(3, square(64), classes=1000, out_channels=6)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(296e6, rel=2e-3)


def test_a_new_network_predicts_zero_and_has_heads_of_one_width() -> None:
    net = config(attention=(8, 4)).build(1, square(8), classes=2)
    x = normal(2, 1, 8, 8)
    assert torch.equal(net(x, torch.tensor([0, 9]), torch.tensor([0, 2])), torch.zeros_like(x))
    assert [module.heads for name, module in net.named_modules() if name in ("down.0.1", "middle.1")] == [2, 4]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_block_scales_and_shifts_its_second_normalization(resample: Any) -> None:
    block = ScaleShiftBlock(8, 12, 6, 4, dropout=0.0, eps=1e-5, resample=resample)
    randomized(block)
    x, emb = normal(2, 8, 4, 6), normal(2, 6)

    def resampled(h: torch.Tensor) -> torch.Tensor:
        if resample == "up":
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return h.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) if resample == "down" else h

    scale, shift = block.emb(emb)[:, :, None, None].chunk(2, dim=1)
    h = block.conv1(resampled(F.silu(block.norm1(x))))
    expected = block.skip(resampled(x)) + block.conv2(F.silu(block.norm2(h) * (1 + scale) + shift))
    torch.testing.assert_close(block(x, emb), expected)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.network\.head_channels 24 does not divide the width 32 of a level"):
        config(head_channels=24).build(1, square(8))
