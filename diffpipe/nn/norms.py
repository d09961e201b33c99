"""Normalizations over the last axis whose parameters may have fewer digits than their input has."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Norm = Literal["layer", "rms"]
_EPS = 1e-6


class LayerNorm(nn.LayerNorm):
    """Its parameters may have fewer digits than its input, as those of a sharded block have."""

    def forward(self, input: Float[Tensor, "*axes c"]) -> Float[Tensor, "*axes c"]:  # noqa: A002 (as torch calls it)
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        return F.layer_norm(input, self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps)


class RMSNorm(nn.Module):
    """x / RMS(x) with a learned scale for each channel, in at least float32."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "*axes c"]) -> Float[Tensor, "*axes c"]:
        return normalized(x.to(torch.promote_types(x.dtype, torch.float32)), "rms", _EPS) * self.weight


def learned_norm(kind: Norm, channels: int) -> nn.Module:
    """A normalization with a learned scale, and for `layer` a shift."""
    return LayerNorm(channels) if kind == "layer" else RMSNorm(channels)


def normalized(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """The last axis normalized, without a learned scale."""
    shape = x.shape[-1:]
    return F.layer_norm(x, shape, eps=eps) if norm == "layer" else F.rms_norm(x, shape, eps=eps)
