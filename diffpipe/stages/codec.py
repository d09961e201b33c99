"""Between uint8 images and what a stage's network sees."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class PixelCodec:
    """The identity codec: the network sees the pixels themselves, scaled from 0..255 to [-1, 1]."""

    def encode(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return images.float() / 127.5 - 1

    def decode(self, x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
