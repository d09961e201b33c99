"""TarFlow: transformers as flows (Zhai et al. 2024, "Normalizing Flows are Capable Generative Models")."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.nn.blocks import zero_init
from diffpipe.nn.flow import full_precision
from diffpipe.nn.norms import LayerNorm
from diffpipe.resolution import Resolution

_EMBEDDING_STD = 0.01
"""The initial standard deviation of positions, start token and classes, as in the code of Zhai et al. 2024. With 1,
they drown the pixels at first: after 200 steps of configs/fashion_mnist/tarflow.yaml, 6.25 bits/dim and not 5.82."""

Positive = Annotated[int, Field(ge=1)]


class TarFlowConfig(Config):
    """Width and depth. The defaults are the unconditional ImageNet-64 network of Zhai et al. 2024."""

    kind: Literal["tarflow"]
    """TarFlow (Zhai et al. 2024): autoregressive transformers over patches. Training is fast, sampling is
    sequential."""
    patch: Positive = 2
    """Side in pixels of the square patch that is one token."""
    width: Positive = 768
    """Channels of the transformers."""
    blocks: Positive = 8
    """Autoregressive maps. Each reads the tokens in the opposite order of the one before."""
    layers: Positive = 8
    """Transformer layers per block."""
    heads: Positive = 12
    """Attention heads; `width` is a multiple of it."""

    @model_validator(mode="after")
    def _divisible(self) -> TarFlowConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self

    def build(self, channels: int, resolution: Resolution, classes: int = 0) -> TarFlow:
        """The network for images of this shape. Raises UserError where they do not fit."""
        return TarFlow(self, channels, resolution, classes)


class KVCache:
    """The keys and values of the tokens that are decoded."""

    def __init__(self) -> None:
        self.kv: Float[Tensor, "two b heads n d"] | None = None

    def append(self, kv: Float[Tensor, "two b heads 1 d"]) -> Float[Tensor, "two b heads n d"]:
        self.kv = kv if self.kv is None else torch.cat([self.kv, kv], dim=3)
        return self.kv


class TransformerLayer(nn.Module):
    """norm → causal attention → add, norm → MLP → add."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Float[Tensor, "b n width"], cache: KVCache | None = None) -> Float[Tensor, "b n width"]:
        """cache: with it h is only the next token, which attends to itself and to all tokens before it."""
        qkv = rearrange(self.qkv(self.norm1(h)), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        k, v = qkv[1:] if cache is None else cache.append(qkv[1:])
        y = F.scaled_dot_product_attention(qkv[0], k, v, is_causal=cache is None)
        h = h + self.out(rearrange(y, "b heads n d -> b n (heads d)"))
        return h + self.mlp(self.norm2(h))


class AutoregressiveBlock(nn.Module):
    """z_i = (x_i − shift_i) exp(−log_scale_i), both functions of the tokens before i and of the label.

    A learned start token comes before the first one. The paper leaves the first token unchanged. The last projection
    starts at zero, so the block starts as the identity; it computes in full precision, since the scale would magnify
    the rounding of a shift.
    """

    def __init__(self, config: TarFlowConfig, tokens: int, dim: int, classes: int):
        super().__init__()
        self.embed = nn.Linear(dim, config.width)
        self.start = nn.Parameter(_EMBEDDING_STD * torch.randn(config.width))
        self.position = nn.Parameter(_EMBEDDING_STD * torch.randn(tokens, config.width))
        self.label = nn.Embedding(classes, config.width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=_EMBEDDING_STD)
        self.layers = nn.ModuleList(TransformerLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.out = zero_init(nn.Linear(config.width, 2 * dim))

    def offsets(self, labels: Tensor | None) -> Float[Tensor, "... n width"]:
        """The embeddings that are added to the tokens: of their positions and of the label."""
        if self.label is None:
            return self.position[None]
        assert labels is not None, "a class-conditional network takes labels"
        return self.position + self.label(labels)[:, None]

    def affine(self, h: Float[Tensor, "b n width"], like: Tensor) -> tuple[Tensor, Tensor]:
        """The log-scale and the shift of tokens, in the type of `like`."""
        with full_precision(h):
            log_scale, shift = self.out(self.norm(h.to(like.dtype))).chunk(2, dim=-1)
        return log_scale, shift

    def forward(
        self, x: Float[Tensor, "b n d"], labels: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, " b"]]:
        start = self.start.expand(len(x), 1, -1)
        h = torch.cat([start, self.embed(x[:, :-1])], dim=1) + self.offsets(labels)
        for layer in self.layers:
            h = layer(h)
        log_scale, shift = self.affine(h, x)
        return (x - shift) * (-log_scale).exp(), -log_scale.sum((1, 2))

    def inverse(self, z: Float[Tensor, "b n d"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b n d"]:
        """Token by token."""
        maps = self.begin(z, labels)
        tokens: list[Tensor] = []
        for token in z.split(1, dim=1):
            log_scale, shift = maps.next()
            tokens.append(token * log_scale.exp() + shift)
            maps.push(tokens[-1])
        return torch.cat(tokens, dim=1)

    def begin(self, like: Float[Tensor, "b n d"], labels: Int[Tensor, " b"] | None) -> TokenMaps:
        """The maps of tokens, one after the other. like: of the tokens' shape and type."""
        return TokenMaps(self, like, labels)


class TokenMaps:
    """The affine maps of a block's tokens, of which each needs the tokens before it."""

    def __init__(self, block: AutoregressiveBlock, like: Float[Tensor, "b n d"], labels: Int[Tensor, " b"] | None):
        self._block, self._like = block, like
        self._caches = [KVCache() for _ in block.layers]
        self._offsets = block.offsets(labels).split(1, dim=1)
        self._h = block.start.expand(len(like), 1, -1)
        self._pushed = 0

    def next(self) -> tuple[Float[Tensor, "b 1 d"], Float[Tensor, "b 1 d"]]:
        """The log-scale and the shift of the token that comes next."""
        h = self._h + self._offsets[self._pushed]
        for layer, cache in zip(self._block.layers, self._caches, strict=True):
            h = layer(h, cache)
        return self._block.affine(h, self._like)

    def push(self, token: Float[Tensor, "b 1 d"]) -> None:
        """Add the next token."""
        self._h = self._block.embed(token)
        self._pushed += 1


class TarFlow(nn.Module):
    """An invertible map x → (z, log|det dz/dx|), z of x's shape and standard normal under the model.

    Raises UserError where the patches do not tile the image, or are fewer than two.
    """

    def __init__(self, config: TarFlowConfig, channels: int, resolution: Resolution, classes: int = 0):
        super().__init__()
        grid = resolution.divided_by(config.patch)
        if not resolution.divisible_by(config.patch) or grid.pixels < 2:
            most = resolution.shorter - resolution.is_square
            raise UserError(
                f"stage.network.patch {config.patch} must divide data.resolution {resolution} into two or more; "
                f"take one of {[p for p in range(1, most + 1) if resolution.divisible_by(p)]}"
            )
        self.patch = config.patch
        self.rows = grid.height
        dim = channels * config.patch**2
        self.flow_blocks = nn.ModuleList(
            AutoregressiveBlock(config, grid.pixels, dim, classes) for _ in range(config.blocks)
        )

    def blocks(self) -> list[nn.Module]:
        """The transformer layers of all flow blocks: a flow block holds several, and is too large a unit."""
        return [layer for block in self.flow_blocks for layer in cast(AutoregressiveBlock, block).layers]

    def forward(
        self, x: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        tokens, log_det = self.tokens(x), x.new_zeros(len(x))
        for block in self.flow_blocks:
            tokens, term = block(tokens, labels)
            tokens, log_det = tokens.flip(1), log_det + term
        return self.image(tokens), log_det

    def inverse(self, z: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b c h w"]:
        tokens = self.tokens(z)
        for block in reversed(self.flow_blocks):
            tokens = block.inverse(tokens.flip(1), labels)  # pyright: ignore[reportCallIssue]
        return self.image(tokens)

    def tokens(self, x: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b n d"]:
        """The patches of images."""
        return rearrange(x, "b c (h p1) (w p2) -> b (h w) (c p1 p2)", p1=self.patch, p2=self.patch)

    def image(self, tokens: Shaped[Tensor, "b n d"]) -> Shaped[Tensor, "b c h w"]:
        """The images of patches."""
        p = self.patch
        return rearrange(tokens, "b (h w) (c p1 p2) -> b c (h p1) (w p2)", h=self.rows, p1=p, p2=p)
