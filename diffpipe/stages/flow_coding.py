"""Lossless coding by a flow: dequantized by the message's bits, then layer by layer (Ho, Lohn & Abbeel 2019)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from diffpipe.coding.local_bits_back import LocalBitsBack
from diffpipe.coding.message import Message
from diffpipe.precision import float32_products

_PIXEL_BITS, _NOISE_BITS = 7, 8  # a pixel value fills 2^-7 of [-1, 1), in 256 places
CODE = LocalBitsBack(_PIXEL_BITS, _NOISE_BITS)


@runtime_checkable
class LayersCoder(Protocol):
    """The layers of a flow and the normal distribution of its latents, as a code of continuous images."""

    def encode(self, message: Message, k: Int64[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        """Push images, whose numbers are places of the code's grid."""
        ...

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> Int64[Tensor, "b c h w"]:
        """Pop n images."""
        ...


class FlowCoder:
    """An `ImageCoder`. An image takes as many bits as the bound under uniform dequantization, on average.

    The encoder draws the noise u within each pixel value's bin with the message's bits. It codes the continuous image,
    layer by layer. The decoder gives back the bits that drew u, which it knows once it has the image.
    """

    images_before = 6  # it pops about 14 bits/dim: 8 for u, and what the layers expand by

    def __init__(self, layers: LayersCoder):
        self._layers = layers

    @float32_products(tf32=False)
    def encode(self, message: Message, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        message.scramble(images.numel(), 0)
        noise = torch.from_numpy(message.pop_uniform(images.numel(), 1 << _NOISE_BITS)).reshape(images.shape)
        self._layers.encode(message, ((images.cpu().long() - 128) << _NOISE_BITS) + noise, labels)

    @float32_products(tf32=False)
    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> UInt8[Tensor, "b c h w"]:
        k = self._layers.decode(message, n, labels)
        message.push_uniform((k & (1 << _NOISE_BITS) - 1).numpy().ravel(), 1 << _NOISE_BITS)
        message.scramble(k.numel(), 0)
        return ((k >> _NOISE_BITS) + 128).to(torch.uint8)
