"""The forward pass of EDM2's UNet as a function of its state dict, written from Karras et al. 2024, figure 21.

Plain loops over names, without modules: nothing of it is shared with the network under test. A tensor that the forward
pass asks for and that is missing is drawn, so a first call makes a state dict of the layout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Architecture(NamedTuple):
    """attention: image sizes."""

    width: int = 16
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    head_channels: int = 8
    classes: int = 0
    size: int = 8
    channels: int = 3


class EDM2Net:
    """weights: the state dict, float64, filled by the first call."""

    def __init__(self, architecture: Architecture):
        self.a = architecture
        self.weights: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(13)

    def __call__(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        a = self.a
        widths = [mult * a.width for mult in a.mult]
        c_emb, sizes = max(widths), [a.size >> level for level in range(len(a.mult))]
        emb = self._linear("unet.emb_noise", self._fourier("unet.emb_fourier", c_noise, widths[0]), c_emb)
        if a.classes:
            assert labels is not None
            one_hot = torch.eye(a.classes + 1)[labels][:, : a.classes].double()
            emb = _sum(emb, self._linear("unet.emb_label", math.sqrt(a.classes) * one_hot, c_emb), 0.5)
        emb = _silu(emb)
        h = self._conv(f"unet.enc.{a.size}x{a.size}_conv", torch.cat([x, torch.ones_like(x[:, :1])], 1), widths[0], 3)
        skips = [h]
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            if level:
                h = self._block(f"unet.enc.{size}x{size}_down", F.avg_pool2d(h, 2), emb, h.shape[1], encoder=True)
                skips.append(h)
            for k in range(a.blocks):
                name = f"unet.enc.{size}x{size}_block{k}"
                h = self._block(name, h, emb, width, encoder=True, attends=size in a.attention)
                skips.append(h)
        for level, (width, size) in reversed([*enumerate(zip(widths, sizes, strict=True))]):
            name = f"unet.dec.{size}x{size}"
            if level == len(widths) - 1:
                h = self._block(f"{name}_in0", h, emb, width, attends=True)
                h = self._block(f"{name}_in1", h, emb, width)
            else:
                h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = self._block(f"{name}_up", h, emb, h.shape[1])
            for k in range(a.blocks + 1):
                h = _cat(h, skips.pop())
                h = self._block(f"{name}_block{k}", h, emb, width, attends=size in a.attention)
        return self._conv("unet.out_conv", h, a.channels, 3) * self._tensor("unet.out_gain")

    def log_variance(self, c_noise: Tensor) -> Tensor:
        """The learned log-variance of the loss."""
        return self._linear("logvar_linear", self._fourier("logvar_fourier", c_noise, 128), 1)[:, 0]

    def _block(
        self, name: str, x: Tensor, emb: Tensor, width: int, *, encoder: bool = False, attends: bool = False
    ) -> Tensor:
        skip = x if x.shape[1] == width else self._conv(f"{name}.conv_skip", x, width, 1)
        if encoder:
            x = skip = _unit(skip, 1)
        y = self._conv(f"{name}.conv_res0", _silu(x), width, 3)
        scale = 1 + self._linear(f"{name}.emb_linear", emb, width) * self._tensor(f"{name}.emb_gain")
        x = _sum(skip, self._conv(f"{name}.conv_res1", _silu(y * scale[:, :, None, None]), width, 3), 0.3)
        if attends:
            b, c, height, w = x.shape
            qkv = self._conv(f"{name}.attn_qkv", x, 3 * c, 1)
            parts = qkv.reshape(b, c // self.a.head_channels, self.a.head_channels, 3, height * w)
            q, k, v = (_unit(parts[:, :, :, i], 2) for i in range(3))
            weight = torch.softmax(q.transpose(2, 3) @ k / math.sqrt(self.a.head_channels), dim=3)
            attended = (v @ weight.transpose(2, 3)).reshape(b, c, height, w)
            x = _sum(x, self._conv(f"{name}.attn_proj", attended, c, 1), 0.3)
        return x.clip(-256, 256)

    def _fourier(self, name: str, x: Tensor, width: int) -> Tensor:
        freqs, phases = self._tensor(f"{name}.freqs", width), self._tensor(f"{name}.phases", width)
        return math.sqrt(2) * torch.cos(x[:, None] * freqs + phases)

    def _linear(self, name: str, x: Tensor, width: int) -> Tensor:
        return x @ self._unit_weight(f"{name}.weight", width, x.shape[1]).T

    def _conv(self, name: str, x: Tensor, width: int, kernel: int) -> Tensor:
        return F.conv2d(x, self._unit_weight(f"{name}.weight", width, x.shape[1], kernel, kernel), padding=kernel // 2)

    def _unit_weight(self, name: str, *shape: int) -> Tensor:
        weight = self._tensor(name, *shape)
        fan_in = weight[0].numel()
        rms = weight.flatten(1).square().mean(1).sqrt() + 1e-4
        return weight / (rms * math.sqrt(fan_in)).reshape(-1, *[1] * (weight.ndim - 1))

    def _tensor(self, name: str, *shape: int) -> Tensor:
        if name not in self.weights:
            self.weights[name] = torch.randn(shape, generator=self._generator).double()
        return self.weights[name]


def _unit(x: Tensor, dim: int) -> Tensor:
    return x / (x.square().mean(dim, keepdim=True).sqrt() + 1e-4)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def _sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def _cat(a: Tensor, b: Tensor) -> Tensor:
    """With a balance of 1/2."""
    c = math.sqrt((a.shape[1] + b.shape[1]) / 0.5)
    return torch.cat([a * c * 0.5 / math.sqrt(a.shape[1]), b * c * 0.5 / math.sqrt(b.shape[1])], dim=1)
