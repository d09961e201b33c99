"""The blocks of TarFlow as a code of continuous images, by local bits-back coding."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from diffpipe.coding.local_bits_back import LocalBitsBack
from diffpipe.coding.message import Message
from diffpipe.nn.tarflow import AutoregressiveBlock, TarFlow
from diffpipe.resolution import Resolution


class TarFlowCoder:
    """A `LayersCoder`. Encoder and decoder run each block token by token, with its cache.

    A pass over all tokens would round otherwise. The encoder pushes the tokens from the last to the first: the decoder
    needs the first one first.
    """

    def __init__(self, flow: TarFlow, code: LocalBitsBack, channels: int, resolution: Resolution):
        """channels, resolution: of the images."""
        self._flow, self._code = flow, code
        grid = resolution.divided_by(flow.patch)
        self._token_shape = grid.pixels, channels * flow.patch**2
        self._blocks = [cast(AutoregressiveBlock, block) for block in flow.flow_blocks]

    def encode(self, message: Message, k: Int64[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        tokens = self._flow.tokens(k)
        for block in self._blocks:
            tokens = self._encode_block(message, block, tokens, labels).flip(1)
        self._code.push_normal(message, tokens, *self._prior(len(k)))

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> Int64[Tensor, "b c h w"]:
        tokens = self._code.pop_normal(message, *self._prior(n))
        for block in reversed(self._blocks):
            tokens = self._decode_block(message, block, tokens.flip(1), labels)
        return self._flow.image(tokens)

    def _encode_block(
        self, message: Message, block: AutoregressiveBlock, x: Int64[Tensor, "b n d"], labels: Tensor | None
    ) -> Int64[Tensor, "b n d"]:
        maps, tokens, affine = block.begin(self._values(block, x), labels), x.split(1, dim=1), []
        for token in tokens:
            affine.append(_affine(*maps.next()))
            maps.push(self._values(block, token))
        z = [
            self._code.encode_affine(message, tokens[i], *affine[i], stream=i + 1) for i in reversed(range(len(tokens)))
        ]
        return torch.cat(z[::-1], dim=1)

    def _decode_block(
        self, message: Message, block: AutoregressiveBlock, z: Int64[Tensor, "b n d"], labels: Tensor | None
    ) -> Int64[Tensor, "b n d"]:
        maps, tokens = block.begin(self._values(block, z), labels), []
        for i, token in enumerate(z.split(1, dim=1)):
            tokens.append(self._code.decode_affine(message, token, *_affine(*maps.next()), stream=i + 1))
            maps.push(self._values(block, tokens[-1]))
        return torch.cat(tokens, dim=1)

    def _values(self, block: AutoregressiveBlock, k: Tensor) -> Tensor:
        return self._code.values(k).to(block.start.device)

    def _prior(self, n: int) -> tuple[Tensor, Tensor]:
        shape = n, *self._token_shape
        return torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)


def _affine(log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of z = (x - shift) exp(-log_scale) = scale * x + shift', float64 on the CPU."""
    scale = (-log_scale.double().cpu()).exp()
    return scale, -scale * shift.double().cpu()
