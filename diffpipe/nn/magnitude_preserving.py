"""Layers whose output has the magnitude of their input, by Karras et al. 2024 (arXiv:2312.02696).

Magnitude is the root mean square. Equations are those of the paper. Weights have magnitude 1 for each output: they are
normalized in every forward pass (equation 47), and projected back after every update (equation 66).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F  # noqa: N812

_EPS = 1e-4
_SILU_MAGNITUDE = 0.596  # of SiLU(x) for a normal x (equation 81)

Axes = Float[Tensor, "*axes"]


def magnitude(x: Axes, dims: Sequence[int]) -> Float[Tensor, "*reduced"]:
    """The root mean square over `dims`, which are kept with size 1, in at least float32."""
    count = math.prod(x.shape[dim] for dim in dims)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=dtype) / math.sqrt(count)


def normalize(x: Axes, dims: Sequence[int]) -> Axes:
    """x with magnitude 1 over `dims`. The division is in at least float32, the result in the type of x.

    Over the channels that is the pixel norm of the encoder; the paper's epsilon of 1e-4 keeps zeros at zero.
    """
    return (x / (magnitude(x, dims) + _EPS)).to(x.dtype)


def mp_silu(x: Axes) -> Axes:
    """SiLU, divided by its magnitude for normal inputs (equation 81)."""
    return F.silu(x) / _SILU_MAGNITUDE


def mp_sum(a: Axes, b: Axes, t: float) -> Axes:
    """(1 - t) a + t b, scaled to the magnitude that a and b have where they are uncorrelated (equation 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Float[Tensor, "b c_a h w"], b: Float[Tensor, "b c_b h w"], t: float) -> Float[Tensor, "b c_a+c_b h w"]:
    """The channels of a and b, where a counts as 1 - t and b as t, whatever their numbers are (equation 103)."""
    channels_a, channels_b = a.shape[1], b.shape[1]
    scale = math.sqrt(channels_a + channels_b) / math.hypot(1 - t, t)
    parts = (scale * (1 - t) / math.sqrt(channels_a) * a, scale * t / math.sqrt(channels_b) * b)
    return torch.cat(parts, dim=1)


class MPFourier(nn.Module):
    """Random Fourier features of a number of order 1 (equation 75): sqrt(2) cos(2 pi (f x + p)), in float32.

    f is drawn from N(0, 1) and p from U(0, 1).
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        angles = rearrange(x.to(self.frequencies.dtype), "b -> b 1") * self.frequencies + self.phases
        return math.sqrt(2) * angles.cos()


class MPLayer(nn.Module):
    """A layer without bias, whose weight has magnitude 1 for each output.

    gain: a further factor on the outputs of a call: a number, or a parameter of shape [1].
    """

    def __init__(self, *shape: int):
        """shape: of the weight, outputs first."""
        super().__init__()
        self.weight = nn.Parameter(normalize(torch.randn(shape), range(1, len(shape))))

    def scaled_weight(self, x: Tensor, gain: float | Tensor) -> Tensor:
        """The weight that gives each output the magnitude of x times `gain`, in the type of x (equation 47)."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        weight = normalize(weight, range(1, weight.ndim))
        return (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)

    @torch.no_grad()
    def project(self, taken: Bool[Tensor, ""]) -> None:
        """Give the weight magnitude 1 for each output (equation 66). taken: where it is false nothing changes.

        A sharded weight has whole outputs on each process, so nothing is communicated.
        """
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        rms = magnitude(weight, range(1, weight.ndim)) + _EPS
        weight.div_(torch.where(taken, rms, 1.0))


class MPLinear(MPLayer):
    """A magnitude-preserving linear layer."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_out, c_in)

    def forward(self, x: Float[Tensor, "b c_in"], gain: float | Tensor = 1.0) -> Float[Tensor, "b c_out"]:
        return F.linear(x, self.scaled_weight(x, gain))


class MPConv(MPLayer):
    """A magnitude-preserving convolution. kernel: its odd side. Zeros around the image keep height and width."""

    def __init__(self, c_in: int, c_out: int, kernel: int):
        super().__init__(c_out, c_in, kernel, kernel)
        self.padding = kernel // 2

    def forward(self, x: Float[Tensor, "b c_in h w"], gain: float | Tensor = 1.0) -> Float[Tensor, "b c_out h w"]:
        return F.conv2d(x, self.scaled_weight(x, gain), padding=self.padding)
