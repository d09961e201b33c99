"""UNet2DModel's config and ours: to and fro, and what the other cannot say."""

from __future__ import annotations

from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.interop.unet2d_config import UNet2D, from_unet2d, to_unet2d
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import square
from tests.support.diffusers_folders import UNET, unet2d

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "Ho et al.": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "one head": {"attention_head_dim": None},
    "classes": {"num_class_embeds": 4},
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "dropout": {"dropout": 0.25, "layers_per_block": 2},
    "learned variance": {"out_channels": 2},
}


@pytest.mark.parametrize("case", CHANGES)
def test_there_and_back_the_config_is_the_same(case: str) -> None:
    config = dict(unet2d(**CHANGES[case]).config)
    written = to_unet2d(from_unet2d(config, "unet/config.json")).model_dump()
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()} == written


def test_names_of_early_versions_and_null_keys_are_read() -> None:
    tree = {**UNET, "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"], "of_old": None}
    assert from_unet2d(tree, "x").attends == [False, True]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scale and shift": (
        {"resnet_time_scale_shift": "scale_shift"},
        "resnet_time_scale_shift is 'scale_shift'; give 'default'",
    ),
    "no attention in the middle": ({"add_attention": False}, "add_attention is False; give True"),
    "Fourier features": ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'; give 'positional'"),
    "another block": ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "it has a SkipDownBlock2D"),
    "another way up": ({"up_block_types": ["UpBlock2D"] * 2}, "at other levels than down_block_types"),
    "no multiple": ({"block_out_channels": [16, 24]}, r"block_out_channels is \[16, 24\] for 2 levels"),
    "too few widths": ({"block_out_channels": [16]}, r"block_out_channels is \[16\] for 2 levels"),
    "no side": ({"sample_size": [8, 0]}, "sample_size is .8, 0."),
    "no size": ({"sample_size": None}, "sample_size is None"),
    "an unknown key": ({"of_tomorrow": 3}, "unknown key of_tomorrow"),
    "a wide embedding": ({"time_embedding_dim": 128}, "time_embedding_dim is 128; here it is 64"),
    "groups of attention": ({"attn_norm_num_groups": 2}, "attn_norm_num_groups"),
    "groups": ({"norm_num_groups": 3}, "channels 16 must be a multiple of groups 3"),
}


def test_images_need_not_be_square() -> None:
    """Attention is then named by the shorter side of its level."""
    given = {**UNET, "sample_size": [16, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}
    given |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "block_out_channels": [8, 16], "norm_num_groups": 4}
    model = from_unet2d(given, "unet/config.json")
    assert (model.resolution, model.network.attention) == ((16, 8), (4,))
    assert to_unet2d(model).sample_size == (16, 8)
    assert from_unet2d(to_unet2d(model).model_dump(), "unet/config.json") == model


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused(case: str) -> None:
    change, words = REFUSED[case]
    with pytest.raises(UserError, match=f"^unet/config.json: .*{words}"):
        from_unet2d({**UNET, **change}, "unet/config.json")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (UNetConfig(channels=32, channel_mult=(2, 2), attention=()), "channel_mult starts with 2"),
        (UNetConfig(channels=32, channel_mult=(1, 2), attention=(8,), heads=2), "heads is 2 at 2 widths"),
        (UNetConfig(channels=32, channel_mult=(1, 2), attention=(), patch=2), "patch is 2"),
    ],
)
def test_what_no_unet2dmodel_computes_is_refused(network: UNetConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        to_unet2d(UNet2D(network, 3, 3, square(8)))


def test_heads_at_one_width_are_channels_of_a_head() -> None:
    network = UNetConfig(channels=32, channel_mult=(1, 2), attention=(), heads=4)
    assert to_unet2d(UNet2D(network, 3, 3, square(8))).attention_head_dim == 16
