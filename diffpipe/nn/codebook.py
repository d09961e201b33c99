"""A codebook that follows the encoder by moving averages (van den Oord et al. 2017), at one scale or several."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.nn.levels import Positive
from diffpipe.nn.quantizer import MAX_CODES, Quantized, Usage, averaged, count, token_weights, usage
from diffpipe.precision import float32_products
from diffpipe.resolution import Resolution
from diffpipe.rng import RNG

_DISTANCES = 2**25  # at a time: 128 MB
_VANISHING = 1e-20  # a count below it is no longer lowered: a code keeps its vector, however long it is not used
_BESIDE = 0.01  # the distance between two codes that start from the same vector, by its size


class EMAQuantizerConfig(Config):
    """Vector quantization whose codebook is a moving average (van den Oord et al. 2017, appendix A.1)."""

    kind: Literal["ema"] = "ema"
    """Vector quantization, whose codebook follows the encoder's vectors by moving averages."""
    codes: int = Field(default=512, ge=2, le=MAX_CODES)
    """Vectors in the codebook."""
    decay: float = Field(default=0.99, gt=0, lt=1)
    """Share of the codebook's averages that each step keeps."""
    commitment: float = Field(default=0.25, ge=0)
    """Weight of the commitment loss, which pulls the encoder's vectors towards their codes."""
    normalize: bool = False
    """Scale the vectors and the codes to unit length, as with low-dimensional codes of ViT-VQGAN (Yu et al. 2022)."""
    restart: float = Field(default=0.01, ge=0, lt=0.1)
    """A code that is used less than this share of the mean starts again from a vector of the batch; 0: never."""
    scales: tuple[Positive, ...] | None = None
    """Scales of a residual quantization by the shorter side of their maps of codes, such as [1, 2, 4, 7] (Tian et al.
    2024): each scale quantizes what the smaller ones have left, and the last one has the latents' size. All of them
    share the codebook. null: the latents' own size alone."""

    @model_validator(mode="after")
    def _scales_rise(self) -> EMAQuantizerConfig:
        scales = self.scales
        if scales is not None and (not scales or list(scales) != sorted(set(scales))):
            raise ValueError(f"scales are to rise, such as [1, 2, 4, 7], not {[*scales]}")
        if scales is not None and self.normalize:
            raise ValueError("normalize is for one scale: residuals have no unit length; leave it out, or scales")
        return self


class EMAQuantizer(nn.Module):
    """Vector quantization at one scale or several. Its codebook is `sums` over `counts`, and has no gradient.

    counts: the moving average of how often a code is used in a global batch. sums: that of the sum of the vectors that
    become it. An average of several of these networks weighs each one's vector by its use.
    """

    counts: Tensor
    vector_sums: Tensor

    def __init__(self, config: EMAQuantizerConfig, channels: int):
        super().__init__()
        self.config = config
        self.register_buffer("counts", torch.ones(config.codes))
        self.register_buffer("vector_sums", torch.randn(config.codes, channels))

    def blocks(self) -> list[nn.Module]:
        return []

    @property
    def codebook(self) -> Float[Tensor, "codes c"]:
        """The vectors of the codes."""
        if self.config.normalize:
            return F.normalize(self.vector_sums, dim=1)
        return self.vector_sums / self.counts[:, None]

    def sizes(self, latents: Resolution) -> Sequence[Resolution]:
        """Raises UserError where the scales do not end with the latents' size."""
        scales, shorter = self.config.scales or (latents.shorter,), latents.shorter
        if scales[-1] != shorter:
            raise UserError(
                f"stage.quantizer.scales are {[*scales]}, and the latents are {latents}; the last scale is to be "
                f"{shorter}, the latents' shorter side"
            )
        # Rounded up, so that no side is zero.
        return tuple(Resolution(*(-(-side * scale // shorter) for side in latents)) for scale in scales)

    def forward(self, z: Float[Tensor, "b c h w"]) -> Quantized:
        """Quantize scale by scale what the smaller scales have left (Tian et al. 2024, algorithm 1, without φ)."""
        z = F.normalize(z.float(), dim=1) if self.config.normalize else z.float()
        codebook, latents = self.codebook, Resolution(*z.shape[2:])
        total, codes, vectors, distances = torch.zeros_like(z), [], [], []
        for size in self.sizes(latents):
            rest = rearrange(_shrunk(z.detach() - total, size), "b c h w -> b (h w) c")
            codes.append(rearrange(nearest(rest.flatten(0, 1), codebook), "(b n) -> b n", b=len(z)))
            vectors.append(rest)
            total = total + self._enlarged(codebook, codes[-1], size, latents)
            distances.append(reduce((z - total).square(), "b c h w -> b", "mean"))
        commitment = torch.stack(distances).mean(0)
        return Quantized(z + (total - z).detach(), torch.cat(codes, 1), torch.cat(vectors, 1), commitment)

    def embed(self, codes: Int[Tensor, "b n"], latents: Resolution) -> Float[Tensor, "b c h w"]:
        return self.partial(codes, latents, len(self.sizes(latents)))

    def partial(self, codes: Int[Tensor, "b n"], latents: Resolution, scales: int) -> Float[Tensor, "b c h w"]:
        """The quantized latents as the first so many scales have them. codes: those of at least these scales."""
        return next(itertools.islice(self.partials(codes, latents), scales - 1, None))

    def partials(self, codes: Int[Tensor, "b n"], latents: Resolution) -> Iterator[Float[Tensor, "b c h w"]]:
        """The quantized latents as the first scale has them, as the first two have them, and so on."""
        codebook, first = self.codebook, 0
        total = codebook.new_zeros(len(codes), codebook.shape[1], *latents)
        for size in self.sizes(latents):
            part = codes[:, first : first + size.pixels]
            first += size.pixels
            total = total + self._enlarged(codebook, part, size, latents)
            yield total

    def start(self, vectors: Float[Tensor, "n c"], rng: RNG) -> None:
        """Set the codebook to some of these vectors, each a little beside it. rng: of the positions 0 to codes - 1."""
        chosen = vectors[torch.arange(len(self.counts), device=vectors.device) * len(vectors) // len(self.counts)]
        self.vector_sums.copy_(_beside(chosen, rng))
        self.counts.fill_(1.0)

    @torch.no_grad()
    def sums(self, quantized: Quantized, valid: Bool[Tensor, " b"] | None, rng: RNG) -> dict[str, Tensor]:
        """The counts and sums of each code's vectors, and vectors from which codes may start again.

        A sample offers one of its vectors to the code whose number is the sample's position modulo the codes. Of
        several, the one of the largest weight is all but alone in their weighted mean.
        """
        codes, vectors = quantized.codes, quantized.vectors
        size, weights = len(self.counts), token_weights(codes, valid)
        weighted = (vectors * weights[..., None]).flatten(0, 1)
        sums = torch.zeros_like(self.vector_sums).index_add_(0, codes.flatten(), weighted)
        offered = vectors[torch.arange(len(codes), device=codes.device), rng.integers("restart", codes.shape[1])]
        weight = torch.exp2(-900 * rng.uniform("restart/weight").double()) * weights[:, 0]
        slot, offer = rng.positions % size, _beside(offered, rng).double() * weight[:, None]
        offers = torch.cat([offer, weight[:, None]], dim=1)
        offers = offers.new_zeros(size, offers.shape[1]).index_add_(0, slot, offers)
        return {"counts": count(codes, weights, size), "vectors": sums, "offers": offers}

    @torch.no_grad()
    def update(self, sums: Mapping[str, Tensor], taken: Bool[Tensor, ""]) -> None:
        """Counts are sums of whole numbers, so which code starts again does not depend on the order of sums."""
        counts = averaged(self.counts, sums["counts"], self.config.decay)
        vectors = averaged(self.vector_sums, sums["vectors"], self.config.decay)
        vanished = counts < _VANISHING
        counts = torch.where(vanished, self.counts, counts)
        vectors = torch.where(vanished[:, None], self.vector_sums, vectors)
        offered, weight = sums["offers"][:, :-1], sums["offers"][:, -1]
        few = self.config.restart * counts.mean()
        again = (counts < few) & (weight > 0)
        fresh = 10 * few * (offered / weight.where(weight > 0, 1)[:, None]).float()
        counts, vectors = torch.where(again, 10 * few, counts), torch.where(again[:, None], fresh, vectors)
        self.counts.copy_(torch.where(taken, counts, self.counts))
        self.vector_sums.copy_(torch.where(taken, vectors, self.vector_sums))

    def usage(self) -> Usage:
        return usage(self.counts)

    def _enlarged(
        self, codebook: Float[Tensor, "codes c"], codes: Int[Tensor, "b n"], size: Resolution, latents: Resolution
    ) -> Float[Tensor, "b c h w"]:
        x = rearrange(codebook[codes], "b (h w) c -> b c h w", h=size.height)
        return x if size == latents else F.interpolate(x, latents, mode="bicubic")


def nearest(x: Float[Tensor, "n c"], codebook: Float[Tensor, "codes c"]) -> Int[Tensor, " n"]:
    """The number of the nearest code of each vector, in full precision."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False), float32_products(tf32=False):
        # ‖x - v‖² = ‖x‖² - 2 x·v + ‖v‖², of which the first is the same for all codes.
        lengths = 0.5 * codebook.square().sum(1)
        parts = x.split(max(1, _DISTANCES // len(codebook)))
        return torch.cat([(lengths - part @ codebook.T).argmin(1) for part in parts])


def _shrunk(x: Float[Tensor, "b c h w"], size: Resolution) -> Float[Tensor, "b c _ _"]:
    """The means over areas."""
    return x if x.shape[2:] == tuple(size) else F.adaptive_avg_pool2d(x, (size.height, size.width))


def _beside(vectors: Float[Tensor, "b c"], rng: RNG) -> Float[Tensor, "b c"]:
    """Vectors with a little noise: two equal codes would share their tokens by rounding errors."""
    size = vectors.square().mean(1, keepdim=True).sqrt()
    return vectors + _BESIDE * size * rng.normal("restart/noise", vectors.shape[1:])
