"""The scale of latents: the numbers that bring each latent channel to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LatentScale(nn.Module):
    """Mean and standard deviation of each latent channel, measured once and never trained (Rombach et al. 2022, G.1).

    It is the identity until `start` measures, unless the two are given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        self.register_buffer("mean", _per_channel(mean or [0.0] * channels))
        self.register_buffer("std", _per_channel(std or [1.0] * channels))

    def blocks(self) -> list[nn.Module]:
        return []

    def forward(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of about unit size, float32."""
        return (z - self.mean) / self.std

    def inverse(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The latents as the autoencoder knows them."""
        return x * self.std + self.mean

    @torch.no_grad()
    def start(self, z: Float[Tensor, "b c h w"]) -> None:
        """Measure each channel over all samples and places of z."""
        std, mean = torch.std_mean(z.double(), dim=(0, 2, 3), correction=0, keepdim=True)
        self.mean.copy_(mean[0])
        self.std.copy_(std[0])


def _per_channel(values: Sequence[float]) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
