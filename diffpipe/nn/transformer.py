"""A decoder-only transformer over embedded tokens, as GPT and LLaMA are (Radford et al. 2019, Touvron et al. 2023).

It knows nothing of what a token is: a pixel, a channel of one, or a code. `Transformer` reads all tokens at once, and
with caches the next ones alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.nn.dit import SwiGLU
from diffpipe.nn.flow import full_precision
from diffpipe.nn.levels import Positive
from diffpipe.nn.norms import Norm, RMSNorm, learned_norm
from diffpipe.nn.positions import rotary_angles_at, rotate
from diffpipe.nn.strided_attention import Pattern, attend_in_columns, attend_in_rows, attend_to, seen_by_next

INITIAL_STD = 0.02
"""The standard deviation of initial weights (Radford et al. 2018, section 4.1)."""


class TransformerConfig(Config):
    """Width and depth of the transformer."""

    width: Positive = 256
    """Channels of the transformer."""
    depth: Positive = 8
    """Transformer blocks."""
    heads: Positive = 4
    """Attention heads; `width` is a multiple of it."""
    attention: Literal["full", "strided"] = "full"
    """full: each token sees all before it. strided: in turns of blocks, those in its row and in the row above it, and
    those above it in its column (Child et al. 2019, "Sparse Transformers", the strided pattern with whole rows). That
    costs a fraction for long sequences, and two blocks see the whole image."""
    rope: Literal["2d", "1d", "none"] = "2d"
    """Rotate queries and keys by the token's row and column (2d) or by its place in the sequence (1d) (Su et al. 2021).
    Learned embeddings of row, column and channel are there in any case."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """swiglu: a gated unit (Shazeer 2020). gelu: GPT-2's."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Channels within the MLP, as a multiple of `width`. swiglu has two thirds of that, for as many parameters."""
    norm: Norm = "rms"
    """rms: RMS normalization (Zhang & Sennrich 2019), as in LLaMA. layer: layer normalization, as in GPT-2, which is
    faster on CPUs."""
    qk_norm: bool = False
    """Normalize queries and keys to unit RMS with a learned scale, which keeps the attention of large networks stable
    (Dehghani et al. 2023)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the channels of each attention's and each MLP's output that training sets to zero."""

    @model_validator(mode="after")
    def _divisible(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        multiple = {"2d": 4, "1d": 2, "none": 1}[self.rope]
        if self.width // self.heads % multiple:
            raise ValueError(
                f"rope={self.rope} needs width / heads to be a multiple of {multiple}; width {self.width} and heads "
                f"{self.heads} give {self.width // self.heads}"
            )
        return self


class KVCache:
    """The keys and values of the tokens that one block has read, in memory for `tokens` of them."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.length = tokens, 0
        self._memory: Float[Tensor, "two b heads tokens d"] | None = None

    def append(self, k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]) -> None:
        """Add the next m tokens."""
        if self._memory is None:
            b, heads, _, d = k.shape
            self._memory = k.new_empty(2, b, heads, self.tokens, d)
        end = self.length + k.shape[2]
        self._memory[0, :, :, self.length : end] = k
        self._memory[1, :, :, self.length : end] = v
        self.length = end

    def at(self, tokens: slice) -> tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b heads n d"]]:
        """The keys and values of some tokens, without a copy."""
        assert self._memory is not None, "nothing was appended"
        k, v = self._memory[:, :, :, tokens]
        return k, v


class TransformerBlock(nn.Module):
    """norm → causal attention → add, norm → MLP → add.

    pattern: the tokens that its attention sees. row: the number of tokens in a row.
    """

    def __init__(self, config: TransformerConfig, pattern: Pattern, row: int):
        super().__init__()
        width, d = config.width, config.width // config.heads
        self.heads, self.row = config.heads, row
        self.pattern: Pattern = pattern
        self.norm1, self.norm2 = (learned_norm(config.norm, width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(d) if config.qk_norm else None for _ in range(2))
        self.out = nn.Linear(width, width, bias=False)
        hidden = round(config.mlp_ratio * width)
        self.mlp = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            if config.mlp == "gelu"
            else SwiGLU(width, 2 * hidden // 3)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        angles: Float[Tensor, "n pairs"] | None = None,
        cache: KVCache | None = None,
        visible: Bool[Tensor, "n n"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """angles: the rotation of each token; None: none. visible: the tokens that each one sees, in place of those up
        to itself.

        cache: with it h are only the next tokens. All of them see each other, and of the tokens before what the pattern
        says.
        """
        q, k, v = rearrange(self.qkv(self.norm1(h)), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = self._attention(q, k, v, visible) if cache is None else self._cached_attention(q, k, v, cache)
        h = h + self.dropout(self.out(rearrange(y, "b heads n d -> b n (heads d)")))
        return h + self.dropout(self.mlp(self.norm2(h)))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        if visible is not None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        if self.pattern == "rows":
            return attend_in_rows(q, k, v, self.row)
        if self.pattern == "columns":
            return attend_in_columns(q, k, v, self.row)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def _cached_attention(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        cache.append(k, v)
        if self.pattern == "full":
            return F.scaled_dot_product_attention(q, *cache.at(slice(0, cache.length)))
        assert q.shape[2] == 1, "rows and columns are read token by token"
        return attend_to(q, *cache.at(seen_by_next(self.pattern, cache.length - 1, self.row)))


class Transformer(nn.Module):
    """The blocks and the last normalization. row: the number of tokens in a row, of which strided attention needs whole
    ones."""

    def __init__(self, config: TransformerConfig, row: int):
        super().__init__()
        patterns: Sequence[Pattern] = ("full",) if config.attention == "full" else ("rows", "columns")
        self.layers = nn.ModuleList(
            TransformerBlock(config, patterns[i % len(patterns)], row) for i in range(config.depth)
        )
        self.norm = learned_norm(config.norm, config.width)
        self._initialize(config.depth)

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        angles: Float[Tensor, "n pairs"] | None = None,
        caches: Sequence[KVCache] | None = None,
        visible: Bool[Tensor, "n n"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """The normalized output for each token, in h's precision.

        caches: one for each block; h are the next tokens. visible: the tokens that each one sees; None: those up to
        itself.
        """
        for i, layer in enumerate(self.layers):
            h = layer(h, angles, None if caches is None else caches[i], visible)
        with full_precision(h):
            return self.norm(h)

    def caches(self, tokens: int) -> list[KVCache]:
        """Empty caches for so many tokens."""
        return [KVCache(tokens) for _ in self.layers]

    def _initialize(self, depth: int) -> None:
        """Weights from N(0, 0.02²), those into the residual stream scaled by 1/√(2 depth) (Radford et al. 2019)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.layers:
            block = cast(TransformerBlock, layer)
            last = block.mlp.out if isinstance(block.mlp, SwiGLU) else block.mlp[-1]
            for linear in (block.out, last):
                nn.init.normal_(cast(nn.Linear, linear).weight, std=INITIAL_STD / math.sqrt(2 * depth))


def embedded_classes(embedding: nn.Embedding, b: int, labels: Int[Tensor, " b"] | None) -> Float[Tensor, "b 1 width"]:
    """The vector that the class adds to each token's input. The last row is the empty label: none, or a dropped one."""
    if labels is None:
        labels = torch.full((b,), embedding.num_embeddings - 1, device=embedding.weight.device)
    return embedding(labels)[:, None]


def token_angles(
    config: TransformerConfig, places: Float[Tensor, "n 2"], dtype: torch.dtype
) -> Float[Tensor, "n pairs"] | None:
    """The angle by which each pair of a head's channels is rotated, for each token; None without rotations.

    places: row and column of each token, float64; with rope=1d its place in the sequence counts instead.
    """
    if config.rope == "none":
        return None
    if config.rope == "1d":
        places = torch.arange(len(places), dtype=torch.float64, device=places.device)[:, None]
    return rotary_angles_at(places, config.width // config.heads).to(dtype)


def in_full_precision(linear: nn.Linear, h: Float[Tensor, "b n width"]) -> Float[Tensor, "b n out"]:
    """The linear layer of h, in the precision of its weights where autocast would lower it."""
    with full_precision(h):
        return linear(h.to(linear.weight.dtype))
