"""The autoregressive stage: a transformer that predicts an image value by value, with its exact likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.config.kinds import default_kind
from diffpipe.dependency import Dependency
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase, Score
from diffpipe.nn.pixel_tokens import PixelGrid
from diffpipe.nn.pixel_transformer import PixelDecoder, PixelTransformer
from diffpipe.nn.transformer import TransformerConfig
from diffpipe.precision import float32_products
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.autoregressive_coding import ValueCoder
from diffpipe.stages.codec import PixelCodecConfig
from diffpipe.stages.codes import TRANSFORMER, CodeAutoregressiveStage, CodeTokensConfig, VQCodecConfig, code_codec
from diffpipe.stages.config import StageConfig
from diffpipe.stages.labels import conditional_classes, dropped_labels, labels_to_generate, required_labels
from diffpipe.stages.likelihood import bits_per_dim
from diffpipe.stages.pixel_heads import CategoricalConfig, Head, LogisticMixtureConfig
from diffpipe.stages.token_sampling import TokenSamplerConfig, check_sampler, draw, labels_of_copies


class PixelTokensConfig(Config):
    """Pixels as tokens: row by row from the top, and within a pixel channel by channel."""

    kind: Literal["pixels"] = "pixels"
    """The values of the pixels, row by row from the top, and within a pixel channel by channel."""
    head: Annotated[CategoricalConfig | LogisticMixtureConfig, Field(discriminator="kind")] = CategoricalConfig(
        kind="categorical"
    )
    """The distribution of a token's values."""
    neighbourhood: int = Field(default=3, ge=0)
    """The input of a token is the token before it, as in GPT, and a convolution of the pixels before it within so many
    rows above and columns to each side (van den Oord et al. 2016), so that a small network need not find them. 0: no
    convolution."""
    embedding: int = Field(default=32, ge=2, multiple_of=2)
    """Channels of the learned vector of each value, an even number."""


class AutoregressiveConfig(StageConfig):
    """An autoregressive transformer: the exact likelihood of an image, as a product over its tokens."""

    kind: Literal["autoregressive"]
    """A transformer that predicts each token from those before it, trained by maximum likelihood."""
    network: TransformerConfig = TransformerConfig()
    """The transformer."""
    codec: Annotated[PixelCodecConfig | VQCodecConfig, Field(discriminator="kind"), default_kind("pixels")] = (
        PixelCodecConfig()
    )
    """The data that is modelled: pixels, or the codes of a vector-quantized autoencoder."""
    tokens: Annotated[PixelTokensConfig | CodeTokensConfig, Field(discriminator="kind"), default_kind("pixels")] = (
        PixelTokensConfig(kind="pixels")
    )
    """The tokens: values of pixels, or codes."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true. The class is added to each
    token's input, and is all that the first one sees."""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples whose label is hidden in training, which teaches P(X) beside P(X|Y). Guidance needs both."""
    sampler: TokenSamplerConfig = TokenSamplerConfig()
    """How the trained model samples. It may change from one sampling to the next."""

    @model_validator(mode="after")
    def _tokens_fit_the_codec(self) -> AutoregressiveConfig:
        if (self.codec.kind == "vq") != (self.tokens.kind == "codes"):
            raise ValueError(
                f"codec.kind={self.codec.kind} does not go with tokens.kind={self.tokens.kind}; codec vq has tokens "
                f"codes, and codec pixels has tokens pixels"
            )
        return self

    def describe(self) -> str:
        return "autoregressive (codes)" if self.tokens.kind == "codes" else super().describe()

    def dependencies(self) -> Sequence[Dependency]:
        if self.codec.kind == "pixels":
            return ()
        return (Dependency("codec", "stage.codec", "run", self.codec.run, self.codec.sha256, needed="always"),)

    def build(
        self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None
    ) -> AutoregressiveStage | CodeAutoregressiveStage:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "codec", the trained autoencoder, where codes are modelled.
        """
        if self.codec.kind == "pixels":
            return AutoregressiveStage(self, shape)
        assert dependencies is not None, "the autoencoder is opened by the caller"
        try:
            codec = code_codec(dependencies["codec"])
        except UserError as error:
            raise UserError(f"stage.codec.run: {error}") from error
        return CodeAutoregressiveStage(self, shape, codec)


class ValueDecoder:
    """The model's distributions of an image's values, one after the other: `next`, then `push` the value, and so on.

    A value is one channel of a pixel. The distributions are those of the likelihood, whatever the sampler's settings.
    They are the same again for the same values before, in batches of the same size, on the same device and in the same
    precision.

    values: how many there are.
    """

    def __init__(self, net: PixelTransformer, head: Head, b: int, labels: Int[Tensor, " b"] | None):
        self.values = net.grid.tokens * net.grid.values
        self._head, self._grid = head, net.grid
        self._network = PixelDecoder(net, b, labels)
        self._parameters = net.out.weight.new_empty(b, head.out)
        self._values = torch.zeros(b, self.values, dtype=torch.int64, device=net.out.weight.device)
        self._pushed = 0

    def next(self) -> Float[Tensor, "b levels"]:
        """The log-probability of each level for the next value, float32. It is called once for each value."""
        of_token = self._pushed % self._grid.values
        if of_token == 0:
            self._parameters = self._network.next()
        return self._head.log_probs(self._parameters, self._last(of_token))

    def push(self, values: Int[Tensor, " b"]) -> None:
        """The values that the distributions of `next` were for."""
        self._values[:, self._pushed] = values
        self._pushed += 1
        if self._pushed % self._grid.values == 0:
            self._network.push(self._last(self._grid.values))

    def images(self) -> UInt8[Tensor, "b c h w"]:
        """The images of all values."""
        return self._grid.join(self._values.unflatten(1, (self._grid.tokens, self._grid.values)))

    def _last(self, n: int) -> Int[Tensor, "b n"]:
        """The last n values that were pushed."""
        return self._values[:, self._pushed - n : self._pushed]


class AutoregressiveStage:
    """A `Stage` that generates and scores. levels: the values of a channel.

    log P(x) = Σ log P(x_i | x_1 … x_{i-1}) over the values in raster order: exact, and without noise.
    """

    generating = (TRANSFORMER,)

    def __init__(self, config: AutoregressiveConfig, shape: ImageShape, levels: int = 256):
        self.classes = conditional_classes(config.conditional, shape)
        check_sampler(config.sampler, levels, conditional=config.conditional, label_dropout=config.label_dropout)
        self.config = config
        self.shape = shape
        self.dims = shape.channels * shape.resolution.pixels
        assert isinstance(config.tokens, PixelTokensConfig), "the config has asked"
        self.tokens = config.tokens
        self.head: Head = self.tokens.head.build(shape.channels, levels)
        self.grid = PixelGrid(shape.channels, shape.resolution, levels, self.head.parts)

    def networks(self) -> dict[str, nn.Module]:
        tokens = self.tokens
        net = PixelTransformer(
            self.config.network,
            self.grid,
            embedding=tokens.embedding,
            reach=tokens.neighbourhood,
            out=self.head.out,
            classes=self.classes,
        )
        return {TRANSFORMER: net}

    def phases(self) -> Sequence[Phase]:
        return (Phase("likelihood", trains=(TRANSFORMER,)),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The bits/dim of each sample."""
        labels = required_labels(self.classes, batch.labels)
        return Loss(
            self._bits(nets, batch.images, dropped_labels(labels, self.classes, self.config.label_dropout, rng))
        )

    @torch.no_grad()
    @float32_products(tf32=False)
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        """Bits/dim: -log2 P(X) per value, and -log2 P(X|Y) where the stage is class-conditional."""
        labels = required_labels(self.classes, batch.labels)
        return Score(self._bits(nets, batch.images, labels), unit="bits/dim", kind="exact")

    def evaluations(self) -> int | None:
        return None

    def begin(self, nets: Mapping[str, nn.Module], b: int, labels: Int[Tensor, " b"] | None) -> ValueDecoder:
        """The distributions of the values of b images, one after the other. labels: None for P(X)."""
        return ValueDecoder(cast(PixelTransformer, nets[TRANSFORMER]), self.head, b, labels)

    def image_coder(self, nets: Mapping[str, nn.Module]) -> ValueCoder:
        """Lossless coding by the conditional distributions, in as many bits as `score` says."""
        return ValueCoder(self, nets)

    @torch.no_grad()
    @float32_products(tf32=False)
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """An image for each position. A class-conditional stage without labels draws them uniformly."""
        sampler, b = self.config.sampler, len(rng.positions)
        labels = labels_of_copies(labels_to_generate(self.classes, labels, rng), self.classes, sampler)
        copies = 1 if labels is None else len(labels) // b
        decoder = self.begin(nets, copies * b, labels)
        for u in rng.uniform("value", (decoder.values,)).T:
            decoder.push(draw(decoder.next(), u, sampler).repeat(copies))
        return decoder.images()[:b]

    def _bits(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], labels: Tensor | None
    ) -> Float[Tensor, " b"]:
        log_likelihood = self.head.log_likelihood(nets[TRANSFORMER](images, labels), self.grid.split(images))
        return bits_per_dim(-log_likelihood.sum(1), self.dims)
