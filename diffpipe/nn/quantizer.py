"""Quantizers: the vector at each place of spatial latents becomes one of finitely many codes.

`EMAQuantizer` learns its codebook by moving averages, at one scale or several (codebook.py). `FSQuantizer` rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.resolution import Resolution
from diffpipe.rng import RNG

MAX_CODES = 2**20  # more than any published codebook; their logits alone are 4 MB per token
_MAX_LEVELS = 1000  # from 1,001 levels on, the thousandth by which the paper widens the bound is half a level
_USAGE_DECAY = 0.99
_FEWEST = 1e-12  # counts below it are as good as zero, and above it no average of float32 vanishes


class FSQConfig(Config):
    """Finite scalar quantization (Mentzer et al. 2023): each channel is bounded and rounded. Nothing is learned."""

    kind: Literal["fsq"]
    """Finite scalar quantization (Mentzer et al. 2023). It has no auxiliary losses."""
    levels: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(8, 5, 5, 5), min_length=1)
    """Values of each channel; stage.network.latent_channels is how many channels there are. The codebook has their
    product: the default is the paper's for 1,000 codes. Each is at most 1,000, and the product at most 2^20."""

    @field_validator("levels", mode="after")
    @classmethod
    def _few_enough(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if max(levels) > _MAX_LEVELS:
            raise ValueError(f"a channel has at most {_MAX_LEVELS} values; give smaller levels, and more of them")
        if math.prod(levels) > MAX_CODES:
            raise ValueError(f"their product is above {MAX_CODES}, the most codes; give smaller levels, or fewer")
        return levels

    @property
    def codes(self) -> int:
        return math.prod(self.levels)


class Quantized(NamedTuple):
    """Latents as codes.

    latents: [b c h w], the codes' vectors, whose gradient passes to the input unchanged (straight-through). codes: the
    number of each token, in [0, codes). vectors: those that became the codes, without gradient. commitment: [b], the
    mean squared distance of the input to its quantization, whose gradient moves the input.
    """

    latents: Float[Tensor, "b c h w"]
    codes: Int[Tensor, "b n"]
    vectors: Float[Tensor, "b n c"]
    commitment: Float[Tensor, " b"]


class Usage(NamedTuple):
    """How the codebook was used lately, each a scalar on the device.

    perplexity: exp of the entropy of the codes, from 1 to their number. used: the share of codes that were used at
    least a hundredth as often as the mean.
    """

    perplexity: Float[Tensor, ""]
    used: Float[Tensor, ""]


class Quantizer(Protocol):
    """The parts that both quantizers have beside `nn.Module`."""

    def sizes(self, latents: Resolution) -> Sequence[Resolution]:
        """Height and width of the tokens of each scale, in the order of the tokens."""
        ...

    def __call__(self, z: Float[Tensor, "b c h w"]) -> Quantized:
        """The latents, quantized."""
        ...

    def embed(self, codes: Int[Tensor, "b n"], latents: Resolution) -> Float[Tensor, "b c h w"]:
        """The quantized latents, of this height and width, of tokens."""
        ...

    def sums(self, quantized: Quantized, valid: Bool[Tensor, " b"] | None, rng: RNG) -> dict[str, Tensor]:
        """Sums over the valid samples. Those of all parts of a global batch, added up, are what `update` takes."""
        ...

    def update(self, sums: Mapping[str, Tensor], taken: Bool[Tensor, ""]) -> None:
        """Update the statistics in place, where `taken`."""
        ...

    def usage(self) -> Usage: ...


class FSQuantizer(nn.Module):
    """Finite scalar quantization; its only buffer counts the codes.

    Latents are multiples of 1/(levels // 2) in [-1, 1].
    """

    counts: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.levels = config.levels
        self.register_buffer("counts", torch.ones(config.codes))

    def blocks(self) -> list[nn.Module]:
        return []

    def sizes(self, latents: Resolution) -> Sequence[Resolution]:
        return (latents,)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Quantized:
        bounded = self._bound(z.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        latents = rounded / self._per_channel(self._halves(), z.device)
        digits = rearrange(rounded.detach(), "b c h w -> b (h w) c").long() + self._tensor(self._halves(), z.device)
        codes = (digits * self._tensor(self._bases(), z.device)).sum(-1)
        vectors = rearrange(latents.detach(), "b c h w -> b (h w) c")
        return Quantized(latents, codes, vectors, z.new_zeros(len(z), dtype=torch.float32))

    def embed(self, codes: Int[Tensor, "b n"], latents: Resolution) -> Float[Tensor, "b c h w"]:
        levels, bases = self._tensor(self.levels, codes.device), self._tensor(self._bases(), codes.device)
        halves = levels // 2
        digits = codes[..., None] // bases % levels
        return rearrange((digits - halves) / halves, "b (h w) c -> b c h w", h=latents.height)

    def sums(self, quantized: Quantized, valid: Bool[Tensor, " b"] | None, rng: RNG) -> dict[str, Tensor]:
        return {"counts": count(quantized.codes, token_weights(quantized.codes, valid), len(self.counts))}

    @torch.no_grad()
    def update(self, sums: Mapping[str, Tensor], taken: Bool[Tensor, ""]) -> None:
        self.counts.copy_(torch.where(taken, averaged(self.counts, sums["counts"], _USAGE_DECAY), self.counts))

    def usage(self) -> Usage:
        return usage(self.counts)

    def _bound(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Each channel in an interval that holds as many integers as it has levels (Mentzer et al. 2023, listing 1).

        The offset of even levels is undone by artanh, so that zero stays zero. Theirs shrinks the interval by a
        thousandth, and artanh needs it a little longer for two levels.
        """
        halves = [(n - 1) * (1 + 1e-3) / 2 for n in self.levels]
        offsets = [0.5 if n % 2 == 0 else 0.0 for n in self.levels]
        shifts = [math.atanh(offset / half) for offset, half in zip(offsets, halves, strict=True)]
        half, offset, shift = (self._per_channel(values, z.device) for values in (halves, offsets, shifts))
        return torch.tanh(z + shift) * half - offset

    def _halves(self) -> list[int]:
        return [n // 2 for n in self.levels]

    def _bases(self) -> list[int]:
        return [math.prod(self.levels[:i]) for i in range(len(self.levels))]

    @staticmethod
    def _tensor(values: Sequence[int], device: torch.device) -> Int[Tensor, " c"]:
        return torch.tensor(values, device=device)

    @staticmethod
    def _per_channel(values: Sequence[int] | Sequence[float], device: torch.device) -> Float[Tensor, "c 1 1"]:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def token_weights(codes: Int[Tensor, "b n"], valid: Bool[Tensor, " b"] | None) -> Float[Tensor, "b n"]:
    """1 for each token of a valid sample, else 0."""
    weights = torch.ones_like(codes, dtype=torch.float32)
    return weights if valid is None else weights * valid[:, None]


def count(codes: Int[Tensor, "b n"], weights: Float[Tensor, "b n"], size: int) -> Float[Tensor, " size"]:
    """The sum of the weights of each code's tokens. Sums of ones are exact, whatever their order."""
    return weights.new_zeros(size).index_add_(0, codes.flatten(), weights.flatten())


def averaged(average: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"], decay: float) -> Float[Tensor, "*shape"]:
    """One step of an exponential moving average."""
    return decay * average + (1 - decay) * value


def usage(counts: Float[Tensor, " size"]) -> Usage:
    """The usage of a codebook whose codes were used so often."""
    shares = counts.double() / counts.double().sum().clamp(min=_FEWEST)
    entropy = -torch.xlogy(shares, shares).sum()
    used = reduce((shares * len(counts) >= 0.01).float(), "size -> ", "mean")
    return Usage(entropy.exp().float(), used)
