"""The forward pass of guided-diffusion's UNet as a function of its state dict, written from Dhariwal & Nichol 2021.

Plain loops over names, without modules: nothing of it is shared with the network under test. A tensor that the forward
pass asks for and that is missing is drawn, so a first call makes a state dict of the layout.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F


class Architecture(NamedTuple):
    """The options of guided-diffusion's create_model. attention: image sizes; heads: a number, or channels of one."""

    width: int = 32
    mult: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    head_channels: int | None = 16
    heads: int = 1
    new_order: bool = False
    outputs: int = 6
    classes: int = 0
    size: int = 8


class GuidedUNet:
    """weights: the state dict, float64, filled by the first call."""

    def __init__(self, architecture: Architecture):
        self.a = architecture
        self.weights: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(11)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        a = self.a
        half = a.width // 2
        angles = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half).double() / half)
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
        emb = self._linear("time_embed.2", F.silu(self._linear("time_embed.0", waves, 4 * a.width)), 4 * a.width)
        if a.classes:
            emb = emb + self._tensor("label_emb.weight", a.classes, 4 * a.width)[labels]
        h, size, i = self._conv("input_blocks.0.0", x, a.width), a.size, 1
        skips = [h]
        for level, mult in enumerate(a.mult):
            for _ in range(a.blocks):
                h = self._attended(f"input_blocks.{i}", h, emb, mult * a.width, size)
                skips.append(h)
                i += 1
            if level < len(a.mult) - 1:
                h = self._residual(f"input_blocks.{i}.0", h, emb, h.shape[1], "down")
                size //= 2
                skips.append(h)
                i += 1
        h = self._residual("middle_block.0", h, emb, h.shape[1])
        h = self._residual("middle_block.2", self._attention("middle_block.1", h), emb, h.shape[1])
        j = 0
        for level in reversed(range(len(a.mult))):
            for k in range(a.blocks + 1):
                h = torch.cat([h, skips.pop()], dim=1)
                h = self._attended(f"output_blocks.{j}", h, emb, a.mult[level] * a.width, size)
                if level and k == a.blocks:
                    h = self._residual(f"output_blocks.{j}.{2 if size in a.attention else 1}", h, emb, h.shape[1], "up")
                    size *= 2
                j += 1
        return self._conv("out.2", F.silu(self._norm("out.0", h)), a.outputs)

    def _attended(self, name: str, h: Tensor, emb: Tensor, width: int, size: int) -> Tensor:
        h = self._residual(f"{name}.0", h, emb, width)
        return self._attention(f"{name}.1", h) if size in self.a.attention else h

    def _residual(self, name: str, x: Tensor, emb: Tensor, width: int, resample: str = "") -> Tensor:
        def resampled(y: Tensor) -> Tensor:
            if resample == "up":
                return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return F.avg_pool2d(y, 2) if resample == "down" else y

        h = self._conv(f"{name}.in_layers.2", resampled(F.silu(self._norm(f"{name}.in_layers.0", x))), width)
        both = self._linear(f"{name}.emb_layers.1", F.silu(emb), 2 * width)[:, :, None, None]
        scale, shift = both[:, :width], both[:, width:]
        h = self._norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = self._conv(f"{name}.out_layers.3", F.silu(h), width)
        x = resampled(x)
        return h + (x if x.shape[1] == width else self._conv(f"{name}.skip_connection", x, width, kernel=1))

    def _attention(self, name: str, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        heads = c // self.a.head_channels if self.a.head_channels else self.a.heads
        flat = self._norm(f"{name}.norm", x).reshape(b, c, height * width)
        rows = F.conv1d(flat, self._tensor(f"{name}.qkv.weight", 3 * c, c, 1), self._tensor(f"{name}.qkv.bias", 3 * c))
        out, d = torch.empty_like(flat), c // heads
        for head in range(heads):
            if self.a.new_order:
                q, k, v = (rows[:, part * c + head * d : part * c + (head + 1) * d] for part in range(3))
            else:
                q, k, v = (rows[:, (3 * head + part) * d : (3 * head + part + 1) * d] for part in range(3))
            weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(d), dim=2)
            out[:, head * d : (head + 1) * d] = v @ weight.transpose(1, 2)
        out = F.conv1d(out, self._tensor(f"{name}.proj_out.weight", c, c, 1), self._tensor(f"{name}.proj_out.bias", c))
        return x + out.reshape(b, c, height, width)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._tensor(f"{name}.weight", x.shape[1], mean=1)
        return F.group_norm(x, 32, weight, self._tensor(f"{name}.bias", x.shape[1]), eps=1e-5)

    def _conv(self, name: str, x: Tensor, width: int, kernel: int = 3) -> Tensor:
        weight = self._tensor(f"{name}.weight", width, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self._tensor(f"{name}.bias", width), padding=kernel // 2)

    def _linear(self, name: str, x: Tensor, width: int) -> Tensor:
        return F.linear(x, self._tensor(f"{name}.weight", width, x.shape[1]), self._tensor(f"{name}.bias", width))

    def _tensor(self, name: str, *shape: int, mean: float = 0.0) -> Tensor:
        if name not in self.weights:
            scale = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            drawn = torch.randn(shape, generator=self._generator)  # float32, as the file that it is written to
            self.weights[name] = (mean + scale * drawn).double()
        return self.weights[name]


def write_state_dict(path: Path, architecture: Architecture = Architecture()) -> GuidedUNet:  # noqa: B008 (a tuple)
    """A file of a state dict; the function that it belongs to."""
    net = GuidedUNet(architecture)
    x = torch.zeros(1, 3, architecture.size, architecture.size, dtype=torch.float64)
    net(x, torch.tensor([0]), torch.tensor([0]) if architecture.classes else None)
    save_file({name: tensor.float() for name, tensor in net.weights.items()}, path)
    return net
