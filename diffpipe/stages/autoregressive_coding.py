"""Lossless coding by an autoregressive stage: each value under its conditional distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.coding.message import Message

if TYPE_CHECKING:
    from diffpipe.stages.autoregressive import AutoregressiveStage


class ValueCoder:
    """An `ImageCoder`. An image takes -log2 p(x) bits.

    Encoder and decoder run the same network value by value, with its cache, so that both have the same bits of the
    distributions. A pass over the whole image would round otherwise.
    """

    images_before = 0

    def __init__(self, stage: AutoregressiveStage, nets: Mapping[str, nn.Module]):
        self._stage, self._nets = stage, nets

    def encode(self, message: Message, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None) -> None:
        model = self._stage.begin(self._nets, len(images), labels)
        values, log_probs = self._stage.grid.split(images).flatten(1), []
        for value in values.T:
            log_probs.append(model.next().cpu())
            model.push(value)
        for value, log_prob in zip(reversed(values.T.cpu().numpy()), reversed(log_probs), strict=True):
            message.push_categorical(value, log_prob.double().exp().numpy())

    def decode(self, message: Message, n: int, labels: Int[Tensor, " b"] | None) -> UInt8[Tensor, "b c h w"]:
        model = self._stage.begin(self._nets, n, labels)
        for _ in range(model.values):
            log_prob = model.next()
            popped = message.pop_categorical(log_prob.cpu().double().exp().numpy())
            model.push(torch.from_numpy(popped).to(log_prob.device))
        return model.images()
