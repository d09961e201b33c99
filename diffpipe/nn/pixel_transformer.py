"""A transformer over the pixels of an image: what it says of each token depends on those before it alone."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from diffpipe.nn.pixel_tokens import CausalNeighbourhood, PixelGrid, PreviousToken, ValueEmbedding
from diffpipe.nn.transformer import (
    INITIAL_STD,
    Transformer,
    TransformerConfig,
    embedded_classes,
    in_full_precision,
    token_angles,
)


class PixelTransformer(nn.Module):
    """Maps an image and its label to `out` numbers for each token, which are parameters of its distribution.

    The input of a token is the one before it, and with a `reach` its neighbourhood, too. The class is added to each, as
    in the conditional PixelCNN (van den Oord et al. 2016b, equation 4); for the first one there is nothing else, so it
    is the prefix. embedding: channels of a value's vector. reach: see `CausalNeighbourhood`; 0: none.
    """

    def __init__(
        self, config: TransformerConfig, grid: PixelGrid, *, embedding: int, reach: int, out: int, classes: int = 0
    ):
        super().__init__()
        width, (height, columns) = config.width, grid.resolution
        self.config, self.grid = config, grid
        self.values = ValueEmbedding(grid, embedding)
        self.previous = PreviousToken(grid, embedding, width)
        self.neighbourhood = CausalNeighbourhood(grid, embedding, width, reach) if reach else None
        self.row, self.column, self.part = (nn.Embedding(n, width) for n in (height, columns, grid.parts))
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, width)
        for embedded in (self.row, self.column, self.part, self.label):
            nn.init.normal_(embedded.weight, std=INITIAL_STD)
        self.transformer = Transformer(config, grid.row)
        self.out = nn.Linear(width, out)
        nn.init.normal_(self.out.weight, std=INITIAL_STD)
        nn.init.zeros_(self.out.bias)

    def blocks(self) -> list[nn.Module]:
        return [*self.transformer.layers]

    def forward(
        self, images: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b n out"]:
        """The label `classes` means no label, as None does."""
        e = self.values(images)
        h = self.previous(e) + self._positions() + self._classes(len(images), labels)
        h = h if self.neighbourhood is None else h + self.neighbourhood(e)
        return in_full_precision(self.out, self.transformer(h, self._angles()))

    def _positions(self) -> Float[Tensor, "n width"]:
        row, column, part = self.row.weight, self.column.weight, self.part.weight
        return rearrange(row[:, None, None] + column[:, None] + part, "h w parts width -> (h w parts) width")

    def _classes(self, b: int, labels: Tensor | None) -> Float[Tensor, "b 1 width"]:
        return embedded_classes(self.label, b, labels)

    def _angles(self) -> Float[Tensor, "n pairs"] | None:
        weight = self.label.weight
        return token_angles(self.config, self.grid.places(weight.device), weight.dtype)


class PixelDecoder:
    """The network token by token: `next` says what it does of the next token, and `push` tells it the token's values.

    It keeps the values so far, and the keys and values of attention.
    """

    def __init__(self, net: PixelTransformer, b: int, labels: Int[Tensor, " b"] | None):
        self.net, self.i = net, 0
        weight = net.values.table.weight
        channels = net.grid.channels * weight.shape[1]
        self._embedded = weight.new_zeros(b, channels, *net.grid.resolution)
        self._positions, self._angles = net._positions(), net._angles()
        self._classes = net._classes(b, labels)
        self._caches = net.transformer.caches(net.grid.tokens)

    def next(self) -> Float[Tensor, "b out"]:
        """The parameters of the next token's distribution. It is called once for each token."""
        net, i = self.net, self.i
        h = net.previous.at(self._embedded, i) + self._positions[i] + self._classes
        h = h if net.neighbourhood is None else h + net.neighbourhood.at(self._embedded, i)
        angles = None if self._angles is None else self._angles[i : i + 1]
        return in_full_precision(net.out, net.transformer(h, angles, self._caches))[:, 0]

    def push(self, values: Int[Tensor, "b v"]) -> None:
        """The values of this token."""
        row, column, part = self.net.grid.place(self.i)
        first = part * values.shape[1]
        embedded = self.net.values.of_channels(values, first)
        start = part * embedded.shape[1]
        self._embedded[:, start : start + embedded.shape[1], row, column] = embedded
        self.i += 1
