"""The two networks of a denoising diffusion GAN: a UNet with a latent, and a UNet's encoder with logits.

Their parameters have the names of a DDPM's UNet of the same config, so they can start from a trained one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import zero_init
from diffpipe.nn.discriminator import Head, multiscale_logits
from diffpipe.nn.unet import UNet, UNetConfig, UNetEncoder
from diffpipe.resolution import Resolution


class DenoisingGenerator(UNet):
    """Maps (x_t, t, latent, label) to a tensor of x_t's shape: the UNet, with the latent beside the timestep.

    Its parameters are the UNet's, by the same names, and `latent.*`. At first the latent has no effect.
    """

    def __init__(self, config: UNetConfig, latent: int, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__(config, channels, resolution, classes)
        c_emb = 4 * config.channels
        self.latent = nn.Sequential(nn.Linear(latent, c_emb), nn.SiLU(), zero_init(nn.Linear(c_emb, c_emb)))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        z: Float[Tensor, "b latent"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        return super().forward(x, t, labels, extra_embedding=self.latent(z))


class DenoisingDiscriminator(UNetEncoder):
    """Maps (x_{t-1}, x_t, timestep, label) to logits. A high logit means real.

    The timestep is that of x_{t-1}. A stage may pass x_0 in its place, with the timestep of x_t. The network is the
    UNet's encoder, with x_t in further channels of its first layer. The features of each level and of the middle give
    a logit at each place, and these are averaged. The label adds a logit by projection (Miyato & Koyama 2018). No layer
    mixes samples.
    """

    def __init__(self, config: UNetConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__(config, 2 * channels, resolution, classes)
        # The last features at each resolution, and the middle's.
        widths = [config.channels * mult for mult in (*config.channel_mult, config.channel_mult[-1])]
        self.heads = nn.ModuleList(Head(width, config.groups) for width in widths)
        self.projection = zero_init(nn.Embedding(classes, self.widths[-1])) if classes else None

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.heads]

    def forward(
        self,
        x_prev: Float[Tensor, "b c h w"],
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, " b"]:
        middle, path = self.encode(torch.cat([x_prev, x_t], dim=1), self.embed(t, labels))
        last = {h.shape[-1]: h for h in path}  # of the layers at one resolution the last stays
        return multiscale_logits([*last.values(), middle], self.heads, self.projection, labels)


def start_from(net: UNetEncoder, unet: Mapping[str, Tensor]) -> None:
    """Copy into `net` the parameters of a trained UNet of the same config that have the same names.

    Further input channels of the first layer start with zero weights.
    """
    own = net.state_dict()
    for name in own.keys() & unet.keys():
        value = unet[name]
        if name == "stem.weight":
            value = F.pad(value, (0, 0, 0, 0, 0, own[name].shape[1] - value.shape[1]))
        own[name] = value
    net.load_state_dict(own)
