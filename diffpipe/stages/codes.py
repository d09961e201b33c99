"""The autoregressive stage over the codes of a trained vector-quantized autoencoder, in raster order or by scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase
from diffpipe.nn.code_transformer import CodeDecoder, CodeGrid, CodeTransformer
from diffpipe.nn.codebook import EMAQuantizer
from diffpipe.plural import plural
from diffpipe.precision import float32_products
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.labels import conditional_classes, dropped_labels, labels_to_generate, required_labels
from diffpipe.stages.token_sampling import check_sampler, draw, labels_of_copies
from diffpipe.stages.vq import QUANTIZER, VQ

if TYPE_CHECKING:
    from diffpipe.stages.autoregressive import AutoregressiveConfig

TRANSFORMER = "transformer"


class VQCodecConfig(Config):
    """The model learns the codes of a trained vector-quantized autoencoder (van den Oord et al. 2017)."""

    kind: Literal["vq"]
    """The codes of a trained run of stage.kind=vq: in raster order, or scale by scale if its quantizer has scales."""
    run: str
    """The run directory, or one checkpoint in it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the manifest.json of the checkpoint; null: the newest one when training starts, which the run then
    keeps."""


class CodeTokensConfig(Config):
    """The codes of stage.codec as tokens."""

    kind: Literal["codes"]
    """The codes of stage.codec, a vector-quantized autoencoder."""


class CodeCodec:
    """A frozen vector-quantized autoencoder: images to codes, and back. images: the shape of those that it encodes."""

    def __init__(self, vq: VQ, nets: Mapping[str, nn.Module]):
        self.vq = vq
        self.images = vq.shape
        self.nets = {name: net.requires_grad_(False).eval() for name, net in nets.items()}
        self.grid = CodeGrid(vq.codes, vq.latent_shape[0], tuple(vq.sizes))

    @property
    def encoded(self) -> tuple[str, dict[str, Any]]:
        """As `ShardCodec` has it."""
        return f"{plural(self.grid.tokens, 'code')} each", {"codes": self.grid.tokens}

    def check(self, images: ImageShape) -> None:
        """Raises UserError where it does not take such images."""
        ours = self.images
        if (ours.channels, ours.resolution) != (images.channels, images.resolution):
            raise UserError(
                f"stage.codec: its autoencoder takes images of {' × '.join(map(str, ours.chw))}, and data.channels is "
                f"{images.channels} and data.resolution {images.resolution}; make them the autoencoder's"
            )

    def encode(self, images: UInt8[Tensor, "b c h w"] | Int[Tensor, "b 1 1 n"]) -> Int[Tensor, "b n"]:
        """The codes of images. images: uint8 images, or the result of `describe`, without the encoder."""
        described = self.describe(images) if images.dtype == torch.uint8 else images
        return described[:, 0, 0].long()

    @torch.no_grad()
    def describe(self, images: UInt8[Tensor, "b c h w"]) -> Int[Tensor, "b 1 1 n"]:
        """The codes in one row, int32: shards hold them in the axes of an image."""
        return self.vq.quantize(self.nets, images).codes[:, None, None].int()

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "b n"]) -> UInt8[Tensor, "b c h w"]:
        """The images of codes."""
        return self.vq.codec.decode(self.vq.decode(self.nets, self.vq.embed(self.nets, codes)))

    @torch.no_grad()
    def inputs(self, codes: Int[Tensor, "b m"], group: int) -> Int[Tensor, "b k"] | Float[Tensor, "b k c"]:
        """The transformer's inputs for one group of tokens. codes: of all groups before, or more."""
        if not self.grid.by_scale:
            return codes[:, group - 1 : group]
        return self._at_scale(self._quantizer.partial(codes, self.vq.latents, group), group)

    def all_inputs(self, codes: Int[Tensor, "b n"]) -> Int[Tensor, "b m"] | Float[Tensor, "b m c"]:
        """The same for all groups after the first."""
        if not self.grid.by_scale:
            return codes[:, :-1]
        smaller = itertools.islice(self._quantizer.partials(codes, self.vq.latents), len(self.grid.groups) - 1)
        return torch.cat([self._at_scale(known, group) for group, known in enumerate(smaller, start=1)], dim=1)

    @property
    def _quantizer(self) -> EMAQuantizer:
        return cast(EMAQuantizer, self.nets[QUANTIZER])

    def _at_scale(self, known: Float[Tensor, "b c h w"], group: int) -> Float[Tensor, "b k c"]:
        size = self.grid.sizes[group]
        return rearrange(F.adaptive_avg_pool2d(known, (size.height, size.width)), "b c h w -> b (h w) c")


def code_codec(trained: TrainedStage) -> CodeCodec:
    """The codec that a trained run makes. Raises UserError where it makes none."""
    if not isinstance(trained.stage, VQ):
        raise UserError(f"{trained.path} is a run of stage.kind={trained.config.kind}; give one of stage.kind=vq")
    return CodeCodec(trained.stage, trained.nets)


class CodeAutoregressiveStage:
    """A `Stage` that generates: log P(codes) = Σ log P(group | groups before), a product over the codes of a group.

    A group is a code in raster order, or a scale (Tian et al. 2024, equation 4).
    """

    generating = (TRANSFORMER, "codec.decoder")
    no_likelihood = (
        "models the codes of a vector-quantized autoencoder, and their probability is no likelihood of images; give a "
        "run with stage.tokens.kind=pixels, or give its autoencoder to diffpipe anomaly, which measures the error of "
        "reconstruction"
    )

    def __init__(self, config: AutoregressiveConfig, shape: ImageShape, codec: CodeCodec):
        self.classes = conditional_classes(config.conditional, shape)
        self.config, self.codec = config, codec
        codec.check(shape)
        check_sampler(
            config.sampler, codec.grid.codes, conditional=config.conditional, label_dropout=config.label_dropout
        )
        if codec.grid.by_scale and config.network.attention == "strided":
            raise UserError(
                "stage.network.attention=strided is for codes in raster order, and the autoencoder of stage.codec has "
                "several scales; set it to full"
            )

    def networks(self) -> dict[str, nn.Module]:
        return {TRANSFORMER: CodeTransformer(self.config.network, self.codec.grid, self.classes)}

    def phases(self) -> Sequence[Phase]:
        return (Phase("likelihood", trains=(TRANSFORMER,)),)

    def borrowed_networks(self) -> dict[str, nn.Module]:
        return {f"codec.{name}": net for name, net in self.codec.nets.items()}

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The bits of a code, of each sample."""
        labels = required_labels(self.classes, batch.labels)
        labels = dropped_labels(labels, self.classes, self.config.label_dropout, rng)
        codes = self.codec.encode(batch.images)
        return Loss(-self.log_likelihood(nets, codes, labels).mean(1) / math.log(2))

    def log_likelihood(
        self, nets: Mapping[str, nn.Module], codes: Int[Tensor, "b n"], labels: Int[Tensor, " b"] | None
    ) -> Float[Tensor, "b n"]:
        """The log-probability of each code, in nats, by one pass."""
        logits = nets[TRANSFORMER](self.codec.all_inputs(codes), labels)
        return -F.cross_entropy(rearrange(logits, "b n codes -> b codes n"), codes, reduction="none")

    def evaluations(self) -> int | None:
        return None

    @torch.no_grad()
    @float32_products(tf32=False)
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """An image for each position. A class-conditional stage without labels draws them uniformly."""
        return self.codec.decode(self.draw_codes(nets, rng, labels))

    @torch.no_grad()
    def draw_codes(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> Int[Tensor, "b n"]:
        """The codes of these images."""
        sampler, b, grid = self.config.sampler, len(rng.positions), self.codec.grid
        labels = labels_of_copies(labels_to_generate(self.classes, labels, rng), self.classes, sampler)
        copies = 1 if labels is None else len(labels) // b
        decoder = CodeDecoder(cast(CodeTransformer, nets[TRANSFORMER]), copies * b, labels)
        codes = torch.zeros(b, 0, dtype=torch.int64, device=rng.positions.device)
        for group, u in enumerate(rng.uniform("value", (grid.tokens,)).split(grid.groups, dim=1)):
            before = self.codec.inputs(codes, group).repeat(copies, *[1] * (1 + grid.by_scale)) if group else None
            logits = decoder.next(before).flatten(0, 1)
            codes = torch.cat([codes, draw(logits, u.flatten(), sampler).unflatten(0, u.shape)], dim=1)
        return codes
