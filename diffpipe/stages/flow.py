"""The flow stage: an invertible network trained by maximum likelihood, on pixels made continuous by dequantization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.config.kinds import Kinds
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase, Score
from diffpipe.nn.flow import Dequantizer, start_act_norms
from diffpipe.nn.glow import Glow, GlowConfig
from diffpipe.nn.tarflow import TarFlow, TarFlowConfig
from diffpipe.precision import float32_products
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.config import StageConfig
from diffpipe.stages.flow_coding import CODE, FlowCoder
from diffpipe.stages.glow_coding import GlowCoder
from diffpipe.stages.labels import conditional_classes, required_labels
from diffpipe.stages.tarflow_coding import TarFlowCoder

START_SAMPLES = 256
"""Images that the ActNorms start from."""
HALF = 128.0  # pixel v fills [v, v + 1) of 256 units of [-1, 1]


class UniformDequantizationConfig(Config):
    """x = (v + u) / 128 − 1 with u uniform in [0, 1) (Theis et al. 2016)."""

    kind: Literal["uniform"]
    """Uniform noise within each pixel value's bin (Theis et al. 2016)."""


class VariationalDequantizationConfig(Config):
    """u from a learned q(u|v) (Ho et al. 2019, "Flow++"), a small conditional flow: a tighter bound."""

    kind: Literal["variational"]
    """Noise within each bin by a learned conditional flow (Ho et al. 2019)."""
    steps: int = Field(default=4, ge=1)
    """Steps of that flow."""
    hidden: int = Field(default=32, ge=1)
    """Hidden channels of its couplings' networks."""


class GaussianDequantizationConfig(Config):
    """x = (v + 1/2) / 128 − 1 + noise_std · eps, which makes better pictures (Zhai et al. 2024).

    The density is then that of noised images: the score says so, and generating ends with a denoising step.
    """

    kind: Literal["gaussian"]
    """Gaussian noise on the pixels (Zhai et al. 2024)."""
    noise_std: float = Field(default=0.05, gt=0)
    """Standard deviation of the noise, for pixels in [-1, 1]."""


class FlowSamplerConfig(Config):
    """How a trained flow generates."""

    temperature: float = Field(default=1.0, ge=0)
    """Factor on the standard normal z: 1 samples the model, 0 gives the one image of z = 0."""


class FlowConfig(StageConfig):
    """A normalizing flow: the exact density of a continuous image."""

    kind: Literal["flow"]
    """A normalizing flow, trained by maximum likelihood."""
    network: Annotated[GlowConfig | TarFlowConfig, Field(discriminator="kind"), Kinds("networks")] = GlowConfig(
        kind="glow"
    )
    """The invertible network."""
    dequantization: Annotated[
        UniformDequantizationConfig | VariationalDequantizationConfig | GaussianDequantizationConfig,
        Field(discriminator="kind"),
    ] = UniformDequantizationConfig(kind="uniform")
    """How 8-bit pixels become continuous."""
    sampler: FlowSamplerConfig = FlowSamplerConfig()
    """How the trained flow samples. It may change from one sampling to the next."""
    conditional: bool = False
    """Train p(x|y) for the labels y of the data, which needs data.labels=true."""

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> FlowStage:
        """The stage for images of this shape. Raises UserError where they do not fit each other."""
        return FlowStage(self, shape)


class _Continuous(NamedTuple):
    """A continuous image x [b c h w] in [-1, 1] and log q of the noise in it [b], in units of pixel values."""

    x: Tensor
    log_q: Tensor | None


class FlowStage:
    """A `Stage` that generates, encodes and scores. The noise of the dequantization is keyed by the samples' positions.

    bits/dim = −log2 p(x) / dims + log2 128: the density in units of pixel values rather than of [-1, 1]. It is the
    exact density of the one continuous x drawn. Its mean over u is an upper bound on −log2 P(v) / dims of the discrete
    image v, by Jensen's inequality (Theis et al. 2016, section 3.1); with a variational q(u|v), log2 q(u|v) / dims is
    added, and the bound is tighter by as much as q is closer to the model's own p(u|v).
    """

    normal_latents = True
    generating = ("flow",)

    def __init__(self, config: FlowConfig, shape: ImageShape):
        self.classes = conditional_classes(config.conditional, shape)
        if config.dequantization.kind == "variational" and not shape.resolution.divisible_by(2):
            raise UserError(
                f"data.resolution {shape.resolution} is odd and stage.dequantization.kind=variational halves it once; "
                f"take an even one, or uniform"
            )
        self.config = config
        self.shape = shape
        self.dims = shape.channels * shape.resolution.pixels
        with torch.device("meta"):
            self.networks()  # what cannot be built is refused here, before any job has started

    def networks(self) -> dict[str, nn.Module]:
        network, noise = self.config.network, self.config.dequantization
        size = self.shape.channels, self.shape.resolution, self.classes
        nets: dict[str, nn.Module] = {"flow": network.build(*size)}
        if not hasattr(nets["flow"], "inverse"):
            raise UserError(f"stage.network.kind={network.kind} cannot be inverted; give a kind that a flow can train")
        if isinstance(noise, VariationalDequantizationConfig):
            nets["dequantizer"] = Dequantizer(self.shape.channels, noise.steps, noise.hidden)
        return nets

    @property
    def start_samples(self) -> int:
        """Glow's ActNorms start from data. TarFlow has none."""
        return START_SAMPLES if self.config.network.kind == "glow" else 0

    @float32_products(tf32=False)
    def start(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> None:
        """Set Glow's ActNorms from these images (Kingma & Dhariwal 2018, section 3.1)."""
        x, _ = self._continuous(nets, batch.images, rng)
        labels = required_labels(self.classes, batch.labels)
        if batch.valid is not None:
            x, labels = x[batch.valid], None if labels is None else labels[batch.valid]
        start_act_norms(nets["flow"], x, labels)

    def phases(self) -> Sequence[Phase]:
        variational = isinstance(self.config.dequantization, VariationalDequantizationConfig)
        return (Phase("likelihood", trains=("flow", "dequantizer") if variational else ("flow",), exact=True),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The bits/dim of each sample."""
        terms = self._bits(nets, batch, rng)
        return Loss(torch.stack(list(terms.values())).sum(0), terms)

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        """Bits/dim for one draw of the noise per image, and its terms: see the class.

        The unit is "bits/dim" and the kind "bound", on the discrete image. Under gaussian noise there is no bound: the
        number is exact, of the noised image, and its unit says so.
        """
        terms = self._bits(nets, batch, rng)
        total = torch.stack(list(terms.values())).sum(0)
        if isinstance(self.config.dequantization, GaussianDequantizationConfig):
            unit = f"bits/dim of images with noise of std {self.config.dequantization.noise_std}"
            return Score(total, unit, "exact", terms)
        return Score(total, "bits/dim", "bound", terms)

    def image_coder(self, nets: Mapping[str, nn.Module]) -> FlowCoder:
        """Local bits-back coding in the bits of `score`. Raises UserError for other noise than uniform."""
        flow, noise = nets["flow"], self.config.dequantization.kind
        if noise != "uniform":
            raise UserError(
                f"stage.dequantization.kind={noise} has no code of images: compression draws the noise within a pixel "
                f"value's bin uniformly; give a flow that was trained with uniform dequantization"
            )
        if isinstance(flow, Glow):
            return FlowCoder(GlowCoder(flow, CODE, self.shape.resolution))
        if isinstance(flow, TarFlow):
            return FlowCoder(TarFlowCoder(flow, CODE, self.shape.channels, self.shape.resolution))
        raise UserError(
            f"stage.network.kind={self.config.network.kind} has no code of images; give a run of glow or tarflow"
        )

    def evaluations(self) -> int | None:
        return None

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        z = self.config.sampler.temperature * rng.normal("prior", self.shape.chw)
        return self.decode_latents(nets, z, labels)

    @torch.no_grad()
    @float32_products(tf32=False)
    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, "b c h w"]:
        """z for one draw of the dequantization's noise. Without noise, latents would not follow the prior."""
        x, _ = self._continuous(nets, images, rng)
        return nets["flow"](x, required_labels(self.classes, labels))[0].float()

    @torch.no_grad()
    @float32_products(tf32=False)
    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """The pixel values whose bins contain x. After training on noised images, x is denoised first."""
        flow, labels = cast(Glow | TarFlow, nets["flow"]), required_labels(self.classes, labels)
        x = flow.inverse(z, labels)
        if isinstance(self.config.dequantization, GaussianDequantizationConfig):
            x = self._denoise(flow, x, labels)
        return ((x + 1) * HALF).floor().clamp(0, 255).to(torch.uint8)

    @float32_products(tf32=False)
    def _bits(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> dict[str, Float[Tensor, " b"]]:
        """The terms of the negative log-likelihood in bits/dim. Float32 also under autocast."""
        labels = required_labels(self.classes, batch.labels)
        x, log_q = self._continuous(nets, batch.images, rng)
        z, log_det = nets["flow"](x, labels)
        nats = {
            "log_det": self.dims * math.log(HALF) - log_det,
            "prior": 0.5 * (z.square() + math.log(2 * math.pi)).sum((1, 2, 3)),
        }
        if log_q is not None:
            nats["dequantization"] = log_q
        return {name: value / (self.dims * math.log(2)) for name, value in nats.items()}

    def _continuous(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> _Continuous:
        noise, v = self.config.dequantization, images.float()
        if isinstance(noise, GaussianDequantizationConfig):
            return _Continuous((v + 0.5) / HALF - 1 + noise.noise_std * rng.normal("noise", self.shape.chw), None)
        if isinstance(noise, UniformDequantizationConfig):
            return _Continuous((v + rng.uniform("dequantization", self.shape.chw)) / HALF - 1, None)
        eps = rng.normal("dequantization", self.shape.chw)
        u, log_det = nets["dequantizer"](eps, (v + 0.5) / HALF - 1)
        log_normal = -0.5 * (eps.square() + math.log(2 * math.pi)).sum((1, 2, 3))
        return _Continuous((v + u) / HALF - 1, log_normal - log_det)

    def _denoise(self, flow: Glow | TarFlow, x: Float[Tensor, "b c h w"], labels: Tensor | None) -> Tensor:
        """The mean of the clean image given the noisy one, x + std² ∇ log p(x) (Tweedie's formula)."""
        assert isinstance(self.config.dequantization, GaussianDequantizationConfig)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, log_det = flow(x, labels)
            log_density = log_det.sum() - 0.5 * z.square().sum()
            (gradient,) = torch.autograd.grad(log_density, x)
        return x.detach() + self.config.dequantization.noise_std**2 * gradient
