"""Every network for images of a height and a width: its outputs, its inverse, and the one line where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.nn.adm import ADMConfig
from diffpipe.nn.autoencoder import CoderConfig, Decoder, Encoder
from diffpipe.nn.discriminator import Discriminator, DiscriminatorConfig
from diffpipe.nn.dit import DiTConfig
from diffpipe.nn.edm2 import EDM2Config
from diffpipe.nn.generator import Generator, GeneratorConfig
from diffpipe.nn.glow import GlowConfig
from diffpipe.nn.levels import LevelsConfig
from diffpipe.nn.patch import PatchDiscriminator
from diffpipe.nn.tarflow import TarFlowConfig
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import Resolution, square
from tests.support.randomized import normal, randomized

WIDE, TALL = Resolution(8, 12), Resolution(12, 8)
LEVELS = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "groups": 4}
UNET = UNetConfig.model_validate(LEVELS | {"attention": (4,)})
ADM = ADMConfig.model_validate(LEVELS | {"kind": "adm", "attention": (4,), "head_channels": 8})
DIT = DiTConfig.model_validate({"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2, "rope": True})
EDM2 = EDM2Config(kind="edm2", channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=8)
GLOW = GlowConfig(kind="glow", levels=2, steps=1, hidden=4)
TARFLOW = TarFlowConfig(kind="tarflow", patch=4, width=16, blocks=2, layers=1, heads=2)


@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("config", [UNET, UNET.model_copy(update={"patch": 2, "attention": (2,)}), ADM, EDM2, DIT])
def test_a_denoiser_gives_the_shape_that_it_takes(config: Any, size: Resolution) -> None:
    net = randomized(config.build(3, size, classes=2, out_channels=6)).eval()
    x = normal(2, 3, *size)
    out = net(x, torch.tensor([1.0, 9.0]), torch.tensor([0, 2]))
    assert out.shape == (2, 6, *size)


def test_a_network_without_positions_is_the_same_for_every_size() -> None:
    """The layers of a UNet with attention at all its levels depend on no size: the weights are those of squares."""
    config = UNET.model_copy(update={"attention": (8, 4)})
    trained, wide = randomized(config.build(1, square(8))), config.build(1, WIDE).eval()
    wide.load_state_dict(trained.state_dict())
    x, t = normal(2, 1, *WIDE), torch.tensor([1, 9])
    torch.testing.assert_close(wide(x, t), trained(x, t))


def test_attention_is_named_by_the_shorter_side() -> None:
    names = [{name for name, _ in UNET.build(1, size).named_parameters()} for size in (WIDE, TALL, square(8))]
    assert names[0] == names[1] == names[2]
    with pytest.raises(UserError, match=r"names resolutions \[6\] that no level has; the levels are \[8, 4\] by"):
        UNET.model_copy(update={"attention": (6,)}).build(1, WIDE)


@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("config", [GLOW, TARFLOW])
def test_a_flow_is_inverted(config: GlowConfig | TarFlowConfig, size: Resolution) -> None:
    net = randomized(config.build(2, size), std=0.05)
    x = normal(3, 2, *size)
    z, _ = net(x)
    assert z.shape == x.shape
    torch.testing.assert_close(net.inverse(z), x, rtol=1e-4, atol=1e-4)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("size", [WIDE, TALL])
@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_an_encoder_and_its_decoder(latent: str, size: Resolution) -> None:
    config = CoderConfig.model_validate(LEVELS | {"latent": latent, "latent_channels": 3})
    encoder, decoder = randomized(Encoder(config, 2, size, outputs=3)), randomized(Decoder(config, size, outputs=2))
    z = encoder(normal(2, 2, *size))
    lowest = (size.height // 2, size.width // 2) if latent == "spatial" else (1, 1)
    assert config.latent_shape(size) == z.shape[1:] == (3, *lowest)
    assert decoder(z).shape == (2, 2, *size)


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_a_generator_and_the_discriminators(size: Resolution) -> None:
    generator = randomized(Generator(GeneratorConfig.model_validate(LEVELS | {"latent": 5}), 1, size))
    images = generator(normal(2, 5))
    assert images.shape == (2, 1, *size)
    assert randomized(Discriminator(DiscriminatorConfig.model_validate(LEVELS), 1, size))(images).shape == (2,)
    patches = PatchDiscriminator(LevelsConfig(channels=4, channel_mult=(1, 2)), 1, size)(images)
    assert patches.shape == (2, size.height // 2, size.width // 2)


ODD = Resolution(8, 10)
BUILDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "unet": (
        lambda: UNET.model_copy(update={"channel_mult": (1, 1, 1)}).build(1, ODD),
        r"data\.resolution 8x10 cannot be halved 2 times for stage\.network\.channel_mult .* a multiple of 4",
    ),
    "dit": (
        lambda: DIT.model_copy(update={"patch": 4}).build(1, ODD),
        r"stage\.network\.patch 4 must divide the resolution 8x10; take one of \[1, 2\]",
    ),
    "glow": (lambda: GLOW.build(1, ODD), r"data\.resolution 8x10 cannot be squeezed 2 times .*a multiple of 4"),
    "tarflow": (
        lambda: TARFLOW.build(1, ODD),
        r"stage\.network\.patch 4 must divide data\.resolution 8x10 into two or more; take one of \[1, 2\]",
    ),
    "generator": (
        lambda: Generator(GeneratorConfig.model_validate(LEVELS), 1, Resolution(7, 8)),
        r"data\.resolution 7x8 cannot be halved 1 time for stage\.generator\.channel_mult",
    ),
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_side_that_does_not_divide_is_refused_in_one_line(name: str) -> None:
    build, line = BUILDS[name]
    with pytest.raises(UserError, match=line) as refused:
        build()
    assert "\n" not in str(refused.value)
