"""The learned log-variance of the loss at each noise level (Karras et al. 2024, arXiv:2312.02696, appendix B.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LogVariance(nn.Module):
    """u(t): a linear function of random Fourier features of the network's time. It starts at 0.

    scale: factor on the time, so that it is of order 1. The loss ||error||^2 / exp(u) + u is least where exp(u) is the
    mean of ||error||^2 at that noise level.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, scale: float, features: int = 128):
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.out = _Float32Linear(features, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def blocks(self) -> Sequence[nn.Module]:
        return (self.out,)

    def forward(self, t: Float[Tensor, " b"] | Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        angles = (self.scale * t.float())[:, None] * self.frequencies + self.phases
        features = math.sqrt(2) * angles.cos() / math.sqrt(angles.shape[1])
        return self.out(features)[:, 0]


class _Float32Linear(nn.Linear):
    """A linear layer without autocast: a logarithm of the loss needs more than bfloat16's three digits."""

    float32 = True

    def forward(self, input: Float[Tensor, "b features"]) -> Float[Tensor, "b out"]:  # noqa: A002 - torch's name
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)
