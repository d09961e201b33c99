"""The layers of Glow as a code of continuous images, by local bits-back coding."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Int, Int64
from torch import Tensor, nn

from diffpipe.coding.local_bits_back import LocalBitsBack, decode_shear, encode_shear
from diffpipe.coding.message import Message
from diffpipe.nn.flow import ActNorm, Chain, Context, Coupling, InvertibleConv, Prior, squeeze, unsqueeze
from diffpipe.nn.glow import Glow
from diffpipe.resolution import Resolution

Affine = tuple[Tensor, Tensor]
"""The scale and the shift of y = scale * x + shift, float64 on the CPU."""


class GlowCoder:
    """A `LayersCoder`. Latents are pushed at the level where they leave, under its prior."""

    def __init__(self, flow: Glow, code: LocalBitsBack, resolution: Resolution):
        """resolution: of the images."""
        self._flow, self._code, self._resolution = flow, code, resolution
        self._chains = [cast(Chain, chain).layers for chain in flow.chains]

    def encode(self, message: Message, k: Int64[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        context, last = self._context(labels), len(self._chains) - 1
        for level, layers in enumerate(self._chains):
            k = squeeze(k)
            for stream, layer in enumerate(layers, 1):
                k = encode_layer(self._code, message, layer, k, context, stream)
            stays, leaves = (None, k) if level == last else k.chunk(2, dim=1)
            self._code.push_normal(message, leaves, *self._gaussian(level, len(k), stays, context))
            k = leaves if stays is None else stays

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> Int64[Tensor, "b c h w"]:
        context, k = self._context(labels), None
        for level, layers in reversed([*enumerate(self._chains)]):
            leaves = self._code.pop_normal(message, *self._gaussian(level, n, k, context))
            k = leaves if k is None else torch.cat([k, leaves], dim=1)
            for stream, layer in reversed([*enumerate(layers, 1)]):
                k = decode_layer(self._code, message, layer, k, context, stream)
            k = unsqueeze(k)
        assert k is not None, "there is at least one level"
        return k

    def _context(self, labels: Tensor | None) -> Context:
        return self._flow.context(next(self._flow.parameters()), labels)

    def _gaussian(self, level: int, n: int, stays: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents that leave at a level, float64."""
        prior = cast(Prior, self._flow.priors[level])
        given = None if stays is None else self._code.values(stays).to(prior.constant.device)
        mean, log_scale = (value.double().cpu() for value in prior.gaussian(given, context))
        shape = n, mean.shape[1], *self._resolution.divided_by(2 ** (level + 1))
        return mean.expand(shape).contiguous(), log_scale.exp().expand(shape).contiguous()


def encode_layer(
    code: LocalBitsBack,
    message: Message,
    layer: nn.Module,
    k: Int64[Tensor, "b c h w"],
    context: Context,
    stream: int,
) -> Int64[Tensor, "b c h w"]:
    """The layer's output. It takes -log2|det| bits of the layer's Jacobian."""
    if isinstance(layer, ActNorm):
        return code.encode_affine(message, k, *_act_norm(layer), stream)
    if isinstance(layer, InvertibleConv):
        scale, lower, upper = _factors(layer)
        k = code.encode_affine(message, k, *scale, stream)
        return encode_shear(encode_shear(k, upper), lower)[:, _order(layer)]
    assert isinstance(layer, Coupling)
    first, second = k.chunk(2, dim=1)
    second = code.encode_affine(message, second, *_coupling(code, layer, first, context), stream)
    return torch.cat([first, second], dim=1)


def decode_layer(
    code: LocalBitsBack,
    message: Message,
    layer: nn.Module,
    k: Int64[Tensor, "b c h w"],
    context: Context,
    stream: int,
) -> Int64[Tensor, "b c h w"]:
    """The layer's input, of `encode_layer`."""
    if isinstance(layer, ActNorm):
        return code.decode_affine(message, k, *_act_norm(layer), stream)
    if isinstance(layer, InvertibleConv):
        scale, lower, upper = _factors(layer)
        k = decode_shear(decode_shear(k[:, _order(layer).argsort()], lower), upper)
        return code.decode_affine(message, k, *scale, stream)
    assert isinstance(layer, Coupling)
    first, second = k.chunk(2, dim=1)
    second = code.decode_affine(message, second, *_coupling(code, layer, first, context), stream)
    return torch.cat([first, second], dim=1)


def _act_norm(layer: ActNorm) -> Affine:
    scale = layer.log_scale.double().cpu().exp()
    return scale, scale * layer.shift.double().cpu()


def _factors(layer: InvertibleConv) -> tuple[Affine, Tensor, Tensor]:
    """P L (U + diag(s)) as P (1 + lower) (1 + upper) diag(s)."""
    lower, upper = (factor.double().cpu() for factor in layer.factors())
    scale = upper.diagonal()
    per_channel = scale[:, None, None]
    return (per_channel, torch.zeros_like(per_channel)), lower.tril(-1), upper.triu(1) / scale


def _order(layer: InvertibleConv) -> Int64[Tensor, " c"]:
    """Where P takes each channel from."""
    return layer.permutation.argmax(dim=1).cpu()


def _coupling(code: LocalBitsBack, layer: Coupling, first: Tensor, context: Context) -> Affine:
    log_scale, shift = layer.affine(code.values(first).to(layer.out.weight.device), context)
    return log_scale.double().cpu().exp(), shift.double().cpu()
