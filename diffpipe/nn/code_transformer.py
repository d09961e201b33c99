"""A transformer over the codes of an image: one after the other, or a whole scale at a time (Tian et al. 2024, VAR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffpipe.nn.transformer import (
    INITIAL_STD,
    Transformer,
    TransformerConfig,
    embedded_classes,
    in_full_precision,
    token_angles,
)
from diffpipe.resolution import Resolution


class CodeGrid(NamedTuple):
    """How the codes of an image lie.

    codes: the size of the codebook. channels: of a code's vector. sizes: height and width of the map of codes at each
    scale, from the smallest; with one scale the codes are predicted in raster order, row by row.
    """

    codes: int
    channels: int
    sizes: tuple[Resolution, ...]

    @property
    def tokens(self) -> int:
        """Codes of an image."""
        return sum(size.pixels for size in self.sizes)

    @property
    def by_scale(self) -> bool:
        """Whether the codes of a scale are predicted together."""
        return len(self.sizes) > 1

    @property
    def groups(self) -> list[int]:
        """How many codes are predicted together, in order."""
        return [size.pixels for size in self.sizes] if self.by_scale else [1] * self.tokens

    def visible(self, device: torch.device) -> Bool[Tensor, "n n"]:
        """Whether each token sees each other: those of its own scale and of smaller ones."""
        groups = torch.tensor(self.groups, device=device)
        group = torch.arange(len(groups), device=device).repeat_interleave(groups, output_size=self.tokens)
        return group[:, None] >= group

    def places(self, device: torch.device) -> Float[Tensor, "n 2"]:
        """Row and column of the middle of each token's area, by the places of the largest scale, float64."""
        full, places = self.sizes[-1], []
        for size in self.sizes:
            axes = [
                (torch.arange(n, dtype=torch.float64, device=device) + 0.5) * whole / n - 0.5
                for n, whole in zip(size, full, strict=True)
            ]
            places.append(rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "axes h w -> (h w) axes"))
        return torch.cat(places)


class CodeTransformer(nn.Module):
    """Maps what is known of an image before each token, and its label, to the logits of the token's code.

    In raster order that is the code before. By scales it is the latents of all smaller scales, at the token's own
    scale. The class is added to each; the first group of tokens has nothing else.
    """

    def __init__(self, config: TransformerConfig, grid: CodeGrid, classes: int = 0):
        super().__init__()
        width = config.width
        self.config, self.grid = config, grid
        self.input = nn.Linear(grid.channels, width) if grid.by_scale else nn.Embedding(grid.codes, width)
        self.position = nn.Embedding(grid.tokens, width)
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, width)
        self.transformer = Transformer(config, grid.sizes[0].width)
        self.out = nn.Linear(width, grid.codes)
        for module in (self.input, self.position, self.label, self.out):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(self.out.bias)

    def blocks(self) -> list[nn.Module]:
        return [*self.transformer.layers]

    def forward(
        self, before: Int[Tensor, "b m"] | Float[Tensor, "b m c"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n codes"]:
        """before: the inputs of all tokens after the first group. The label `classes` means none, as None does."""
        classes = self._classes(len(before), labels)
        first = classes.expand(-1, self.grid.groups[0], -1)
        h = torch.cat([first, self.input(before) + classes], dim=1) + self.position.weight
        visible = self.grid.visible(h.device) if self.grid.by_scale else None
        return in_full_precision(self.out, self.transformer(h, self._angles(), visible=visible))

    def _classes(self, b: int, labels: Tensor | None) -> Float[Tensor, "b 1 width"]:
        return embedded_classes(self.label, b, labels)

    def _angles(self) -> Float[Tensor, "n pairs"] | None:
        weight = self.label.weight
        return token_angles(self.config, self.grid.places(weight.device), weight.dtype)


class CodeDecoder:
    """The network group by group: a token in raster order, or a scale. It keeps the keys and values of attention."""

    def __init__(self, net: CodeTransformer, b: int, labels: Int[Tensor, " b"] | None):
        self._net, self._angles = net, net._angles()
        self._classes, self._read = net._classes(b, labels), 0
        self._caches = net.transformer.caches(net.grid.tokens)

    def next(self, before: Int[Tensor, "b m"] | Float[Tensor, "b m c"] | None) -> Float[Tensor, "b m codes"]:
        """The logits of the next group's tokens. before: their inputs; None for the first group."""
        net, start = self._net, self._read
        first = self._classes.expand(-1, net.grid.groups[0], -1)
        h = first if before is None else net.input(before) + self._classes
        self._read = start + h.shape[1]
        group = slice(start, self._read)
        angles = None if self._angles is None else self._angles[group]
        h = net.transformer(h + net.position.weight[group], angles, self._caches)
        return in_full_precision(net.out, h)
