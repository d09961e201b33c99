"""Layers of convolutional flows: ActNorm, invertible 1×1 convolution, affine coupling (Kingma & Dhariwal 2018).

Every layer maps (x, context) to (y, log|det dy/dx|) and has an `inverse`. The context is a feature map that broadcasts
over x, [b k 1 1] for a label. Only the learned functions read it: it is not inverted.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import zero_init

Context = Float[Tensor, "b k hc wc"] | None

BOUND = 2.0  # nats: the largest log-scale of one layer that depends on its input


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Without autocast: the terms of the likelihood are computed in the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def bounded(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A log-scale in (−BOUND, BOUND), near the identity around zero."""
    return BOUND * torch.tanh(raw / BOUND)


def squeeze(x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b 4*c h2 w2"]:
    """Half the resolution, four times the channels (Dinh et al. 2017, section 3.6)."""
    return rearrange(x, "b c (h s1) (w s2) -> b (c s1 s2) h w", s1=2, s2=2)


def unsqueeze(x: Shaped[Tensor, "b c4 h w"]) -> Shaped[Tensor, "b c 2*h 2*w"]:
    return rearrange(x, "b (c s1 s2) h w -> b c (h s1) (w s2)", s1=2, s2=2)


def one_hot(labels: Int[Tensor, " b"], classes: int, like: Tensor) -> Float[Tensor, "b {classes}"]:
    """Labels as rows of an identity matrix. torch's own function checks its input, which waits for the device."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(like.dtype)


class ActNorm(nn.Module):
    """A scale and a shift for each channel (paper, section 3.1). It is the identity until `start` sets it from data."""

    float32 = True

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Context = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return (x + self.shift) * self.log_scale.exp(), log_det.expand(len(x))

    def inverse(self, y: Float[Tensor, "b c h w"], context: Context = None) -> Float[Tensor, "b c h w"]:
        return y * (-self.log_scale).exp() - self.shift

    @torch.no_grad()
    def start(self, x: Float[Tensor, "b c h w"]) -> None:
        """Set scale and shift so that each channel of x comes out with mean 0 and standard deviation 1."""
        std, mean = torch.std_mean(x.double(), dim=(0, 2, 3), correction=0, keepdim=True)
        self.shift.copy_(-mean[0])
        # A channel that is constant would ask for an infinite scale.
        self.log_scale.copy_(-torch.log(std[0] + 1e-6))


@torch.no_grad()
def start_act_norms(flow: nn.Module, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
    """Initialize every ActNorm of a flow in one pass over x: each is set from its own input before it is applied."""

    def start(layer: nn.Module, args: tuple[Any, ...]) -> None:
        cast(ActNorm, layer).start(args[0])

    layers = [layer for layer in flow.modules() if isinstance(layer, ActNorm)]
    handles = [layer.register_forward_pre_hook(start) for layer in layers]
    try:
        with full_precision(x):
            flow(x, labels)
    finally:
        for handle in handles:
            handle.remove()


class InvertibleConv(nn.Module):
    """A 1×1 convolution by W = P L (U + diag(s)), so that log|det W| = sum log|s| (paper, equations 10 and 11).

    W starts as a random rotation. P and the signs of s stay as they start.
    """

    float32 = True
    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign().clone())

    def factors(self) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c c"]]:
        """L and U + diag(s)."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Context = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        with full_precision(x):
            lower, upper = self.factors()
            weight = self.permutation @ lower @ upper
            log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
            return F.conv2d(x, weight[:, :, None, None]), log_det.expand(len(x))

    def inverse(self, y: Float[Tensor, "b c h w"], context: Context = None) -> Float[Tensor, "b c h w"]:
        with full_precision(y):
            lower, upper = self.factors()
            half = torch.linalg.solve_triangular(lower, self.permutation.mT, upper=False, unitriangular=True)
            weight = torch.linalg.solve_triangular(upper, half, upper=True)
            return F.conv2d(y, weight[:, :, None, None])


class Coupling(nn.Module):
    """Scale and shift the second half of the channels by a function of the first half and the context.

    The log-scale is bounded. The last convolution starts at zero, so the layer starts as the identity;
    it computes in full precision, since later scales would magnify the rounding of a shift.
    """

    float32 = True

    def __init__(self, channels: int, hidden: int, c_context: int):
        super().__init__()
        self.stem = nn.Conv2d(channels // 2, hidden, 3, padding=1)
        self.context = nn.Conv2d(c_context, hidden, 1, bias=False) if c_context else None
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.out = zero_init(nn.Conv2d(hidden, channels, 3, padding=1))

    def affine(
        self, x: Float[Tensor, "b c1 h w"], context: Context
    ) -> tuple[Float[Tensor, "b c2 h w"], Float[Tensor, "b c2 h w"]]:
        """The log-scale and the shift of the second half of the channels, by the first half x."""
        h = self.stem(x)
        if self.context is not None:
            assert context is not None, "a conditional flow takes a context"
            h = h + self.context(context)
        h = F.relu(self.middle(F.relu(h)))
        with full_precision(x):
            raw, shift = self.out(h.to(x.dtype)).chunk(2, dim=1)
        return bounded(raw), shift

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Context = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        first, second = x.chunk(2, dim=1)
        log_scale, shift = self.affine(first, context)
        return torch.cat([first, second * log_scale.exp() + shift], dim=1), log_scale.sum((1, 2, 3))

    def inverse(self, y: Float[Tensor, "b c h w"], context: Context = None) -> Float[Tensor, "b c h w"]:
        first, second = y.chunk(2, dim=1)
        log_scale, shift = self.affine(first, context)
        return torch.cat([first, (second - shift) * (-log_scale).exp()], dim=1)


class Chain(nn.Module):
    """`steps` times ActNorm → invertible 1×1 convolution → coupling. `channels` is even."""

    def __init__(self, channels: int, steps: int, hidden: int, c_context: int):
        super().__init__()
        self.layers = nn.ModuleList(
            layer
            for _ in range(steps)
            for layer in (ActNorm(channels), InvertibleConv(channels), Coupling(channels, hidden, c_context))
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Context = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, term = layer(x, context)
            log_det = log_det + term
        return x, log_det

    def inverse(self, y: Float[Tensor, "b c h w"], context: Context = None) -> Float[Tensor, "b c h w"]:
        for layer in reversed(self.layers):
            y = layer.inverse(y, context)  # pyright: ignore[reportCallIssue]
        return y


class Prior(nn.Module):
    """Standardizes channels by a learned mean and bounded log-scale, functions of the other channels and of the label.

    It makes the learned Gaussian of each level a layer of the flow, so that all of z is standard normal.
    """

    float32 = True

    def __init__(self, channels: int, c_given: int, c_context: int):
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(2 * channels, 1, 1))
        self.given = zero_init(nn.Conv2d(c_given, 2 * channels, 3, padding=1)) if c_given else None
        self.context = zero_init(nn.Conv2d(c_context, 2 * channels, 1)) if c_context else None

    def gaussian(self, given: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """Mean and log-scale, which broadcast over the images."""
        h = self.constant[None]
        with full_precision(h):
            if self.given is not None:
                h = h + self.given(given)
            if self.context is not None:
                h = h + self.context(context)
        mean, raw = h.chunk(2, dim=1)
        return mean, bounded(raw)

    def forward(
        self, x: Float[Tensor, "b c h w"], given: Float[Tensor, "b cg h w"] | None, context: Context = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        mean, log_scale = self.gaussian(given, context)
        return (x - mean) * (-log_scale).exp(), -log_scale.expand_as(x).sum((1, 2, 3))

    def inverse(
        self, z: Float[Tensor, "b c h w"], given: Float[Tensor, "b cg h w"] | None, context: Context = None
    ) -> Float[Tensor, "b c h w"]:
        mean, log_scale = self.gaussian(given, context)
        return z * log_scale.exp() + mean


class Dequantizer(nn.Module):
    """q(u|x), the noise in [0, 1] that is added to pixel values (Ho et al. 2019, "Flow++", section 3.1).

    A flow on normal noise conditioned on x, then the normal's distribution function where the paper has the sigmoid,
    so that it starts as exactly uniform noise. Its ActNorms need no start from data: they see standard normal noise as
    long as the couplings are the identity. The resolution is even.
    """

    def __init__(self, channels: int, steps: int, hidden: int):
        super().__init__()
        self.context = nn.Sequential(nn.Conv2d(4 * channels, hidden, 3, padding=1), nn.ReLU())
        self.chain = Chain(4 * channels, steps, hidden, hidden)

    def blocks(self) -> list[nn.Module]:
        return [*self.chain.layers]

    def forward(
        self, eps: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """u from standard normal eps, and log|det du/deps|."""
        y, log_det = self.chain(squeeze(eps), self.context(squeeze(x)))
        y = unsqueeze(y)
        log_density = -0.5 * (y.square() + math.log(2 * math.pi))
        return torch.special.ndtr(y), log_det + log_density.sum((1, 2, 3))
