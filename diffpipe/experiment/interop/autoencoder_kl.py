"""The decoder of a VAE as diffusers' AutoencoderKL, which DiTPipeline decodes latents with.

AutoencoderKL has a middle and one residual block more per level, which are the identity here. Its group normalization
adds 1e-6 to the variance where ours adds 1e-5: all features between the normalizations are smaller by the square root
of that ratio. The scale of the latents is its post_quant_conv. Its encoder pads otherwise than ours, so no weights make
it ours: they are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.interfaces import ImageShape
from diffpipe.nn.autoencoder import CoderConfig
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.stages.latents import LatentCodec

DECODES_ONLY = "the vae decodes alone: its encoder is zero, since AutoencoderKL's pads convolutions otherwise"
_EPS, _THEIR_EPS = 1e-5, 1e-6
_FACTOR = math.sqrt(_THEIR_EPS / _EPS)
_POST_QUANT = "post_quant_conv"


class AutoencoderKLConfig(Config):
    """The keys of an AutoencoderKL's config.json that differ from its defaults or between our VAEs (diffusers 0.42)."""

    in_channels: int
    out_channels: int
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    norm_num_groups: int
    sample_size: int
    scaling_factor: Literal[1] = 1
    force_upcast: bool = False
    mid_block_add_attention: Literal[False] = False


def to_autoencoder_kl(network: CoderConfig, shape: ImageShape) -> AutoencoderKLConfig:
    """The AutoencoderKL's config. shape: of the VAE's images."""
    levels = len(network.channel_mult)
    return AutoencoderKLConfig(
        in_channels=shape.channels,
        out_channels=shape.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(mult * network.channels for mult in network.channel_mult),
        layers_per_block=network.blocks,
        latent_channels=network.latent_channels,
        norm_num_groups=network.groups,
        sample_size=shape.resolution.height,
    )


def their_vae(codec: LatentCodec, scale: LatentScale) -> dict[str, Tensor]:
    """The AutoencoderKL's tensors, float32. scale: of the latents that are diffused."""
    network, channels = codec.vae.config.network, codec.vae.shape.channels
    ours = codec.nets["decoder"].state_dict()
    decoder = dict(_decoder(network, ours, channels))
    std, mean = scale.std.flatten().float(), scale.mean.flatten().float()
    decoder |= {f"{_POST_QUANT}.weight": torch.diag(std)[:, :, None, None], f"{_POST_QUANT}.bias": mean.clone()}
    return decoder | _no_encoder(network, channels)


def latent_scale(weights: WeightsFile, codec: LatentCodec) -> dict[str, Tensor]:
    """The tensors of the scale of latents in an AutoencoderKL's weights. Raises UserError unless it is that codec's."""
    blank = their_vae(codec, LatentScale(codec.vae.config.network.latent_channels))
    weights.require({key: tensor.shape for key, tensor in blank.items()}, "the VAE of --codec")
    theirs = weights.read()
    mean, std = theirs[f"{_POST_QUANT}.bias"], theirs[f"{_POST_QUANT}.weight"][:, :, 0, 0].diagonal()
    expected = their_vae(codec, LatentScale(len(mean), mean.tolist(), std.tolist()))
    other = next((key for key, tensor in theirs.items() if not torch.equal(tensor, expected[key])), None)
    if other is not None:
        raise UserError(f"{weights.path}: {other} has other values than the VAE of --codec; give the run that it is of")
    return {"mean": mean[:, None, None].contiguous(), "std": std[:, None, None].contiguous()}


def _decoder(network: CoderConfig, ours: Mapping[str, Tensor], channels: int) -> Iterator[tuple[str, Tensor]]:
    """Our decoder's layers in order, its blocks level by level from the lowest, and the identities between them."""
    widths = [mult * network.channels for mult in network.channel_mult][::-1]
    yield from _scaled("decoder.conv_in", ours, "stem", weight=True)
    yield from _middle("decoder", widths[0])
    i = 0
    for level, width in enumerate(widths):
        for k in range(network.blocks):
            yield from _block(f"decoder.up_blocks.{level}.resnets.{k}", ours, f"layers.{i}")
            i += 1
        yield from _identity(f"decoder.up_blocks.{level}.resnets.{network.blocks}", width)
        if level < len(widths) - 1:
            yield from _scaled(f"decoder.up_blocks.{level}.upsamplers.0.conv", ours, f"layers.{i}.conv", weight=False)
            i += 1
    for kind in ("weight", "bias"):
        yield f"decoder.conv_norm_out.{kind}", ours[f"norm.{kind}"].float()
        yield f"decoder.conv_out.{kind}", ours[f"out.{kind}"][:channels].float().clone()  # the mean, without its scale


def _block(theirs: str, ours: Mapping[str, Tensor], module: str) -> Iterator[tuple[str, Tensor]]:
    for norm in ("norm1", "norm2"):
        for kind in ("weight", "bias"):
            yield f"{theirs}.{norm}.{kind}", ours[f"{module}.{norm}.{kind}"].float()
    for conv in ("conv1", "conv2"):
        yield from _scaled(f"{theirs}.{conv}", ours, f"{module}.{conv}", weight=True)
    if f"{module}.skip.weight" in ours:
        yield from _scaled(f"{theirs}.conv_shortcut", ours, f"{module}.skip", weight=False)


def _scaled(theirs: str, ours: Mapping[str, Tensor], module: str, *, weight: bool) -> Iterator[tuple[str, Tensor]]:
    """A convolution whose output is smaller. weight: its input is not, so the weight is scaled too."""
    given = ours[f"{module}.weight"]
    yield f"{theirs}.weight", (given.double() * _FACTOR if weight else given).float()
    yield f"{theirs}.bias", (ours[f"{module}.bias"].double() * _FACTOR).float()


def _middle(coder: str, width: int) -> Iterator[tuple[str, Tensor]]:
    for k in range(2):
        yield from _identity(f"{coder}.mid_block.resnets.{k}", width)


def _identity(block: str, width: int) -> Iterator[tuple[str, Tensor]]:
    """A residual block whose last convolution is zero."""
    for k in (1, 2):
        yield f"{block}.norm{k}.weight", torch.ones(width)
        yield f"{block}.norm{k}.bias", torch.zeros(width)
        yield from _zero(f"{block}.conv{k}", width, width, 3)


def _zero(module: str, c_in: int, c_out: int, kernel: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{module}.weight", torch.zeros(c_out, c_in, kernel, kernel)
    yield f"{module}.bias", torch.zeros(c_out)


def _no_encoder(network: CoderConfig, channels: int) -> dict[str, Tensor]:
    widths, moments = [mult * network.channels for mult in network.channel_mult], 2 * network.latent_channels
    tensors = dict(_zero("encoder.conv_in", channels, widths[0], 3))
    c = widths[0]
    for level, width in enumerate(widths):
        for k in range(network.blocks):
            block = f"encoder.down_blocks.{level}.resnets.{k}"
            for part, c_in in (("1", c), ("2", width)):
                tensors |= {
                    f"{block}.norm{part}.weight": torch.zeros(c_in),
                    f"{block}.norm{part}.bias": torch.zeros(c_in),
                }
                tensors |= _zero(f"{block}.conv{part}", c_in, width, 3)
            if c != width:
                tensors |= _zero(f"{block}.conv_shortcut", c, width, 1)
            c = width
        if level < len(widths) - 1:
            tensors |= _zero(f"encoder.down_blocks.{level}.downsamplers.0.conv", c, c, 3)
    tensors |= _middle("encoder", c)
    tensors |= {"encoder.conv_norm_out.weight": torch.zeros(c), "encoder.conv_norm_out.bias": torch.zeros(c)}
    tensors |= _zero("encoder.conv_out", c, moments, 3)
    return tensors | dict(_zero("quant_conv", moments, moments, 1))
