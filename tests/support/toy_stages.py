"""A stage so small that its training can be followed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from diffpipe.interfaces import Batch, Loss, Phase
from diffpipe.rng import KeyedRNG


class Toy:
    """Learns the mean of noised pixels: loss = (w - pixel - noise)^2, one weight, keyed noise."""

    def networks(self) -> dict[str, nn.Module]:
        return {"point": nn.Linear(1, 1)}

    def phases(self) -> Sequence[Phase]:
        return (Phase("fit", trains=("point",)),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x = batch.images.float().mean((1, 2, 3)) / 255
        target = x + 0.1 * rng.normal("noise", ())
        guess = nets["point"](x[:, None])[:, 0]
        return Loss((guess - target).square(), {"pixel": x})


class OneBlock(nn.Module):
    """One weight and one bias, in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def blocks(self) -> list[nn.Module]:
        return [self.linear]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Duel(Toy):
    """Two networks in two phases: the second is due every other step from step 1 on."""

    def networks(self) -> dict[str, nn.Module]:
        return {"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)}

    def phases(self) -> Sequence[Phase]:
        return (Phase("a", trains=("first",)), Phase("b", trains=("second",), every=2, start=1))

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x = batch.images.float().mean((1, 2, 3))[:, None] / 255
        return Loss((nets["second"](nets["first"](x)) - 1).square()[:, 0])


def batch(positions: Sequence[int]) -> Batch:
    """Pixels that depend on the position."""
    p = torch.tensor(list(positions))
    images = (p[:, None, None, None] * 37 % 256).expand(-1, 1, 4, 4).to(torch.uint8).contiguous()
    return Batch(images, None, p, [f"key{i}" for i in positions])
