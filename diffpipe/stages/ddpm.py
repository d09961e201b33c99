"""The DDPM stage: an epsilon-predicting UNet, trained with the simple loss, sampled by ancestral steps or DDIM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config.kinds import Kinds
from diffpipe.diffusion.objective import simple_loss, training_pair
from diffpipe.diffusion.samplers import SamplerConfig, sample
from diffpipe.diffusion.schedule import PerDevice, Schedule, ScheduleConfig
from diffpipe.diffusion.vlb import VLBScore, timestep_strata, variational_lower_bound
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Dependency, ImageShape, Loss, Phase
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.nn.unet import UNetConfig
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.codec import Codec, CodecConfig, PixelCodec, PixelCodecConfig
from diffpipe.stages.config import StageConfig
from diffpipe.stages.labels import conditional_classes
from diffpipe.stages.latents import latent_codec

DENOISER, LATENT_SCALE = "denoiser", "latent_scale"
START_SAMPLES = 2000
"""Samples on which the scale of latents is measured: enough for three digits."""
_CHUNK = 100


class GuidedSamplerConfig(SamplerConfig):
    """How a trained stage generates and scores. It may change every time, and does not belong to the checkpoint."""

    renamed: ClassVar[dict[str, str]] = {"bound_steps": "vlb_steps"}

    guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance (Ho & Salimans 2022): 1 samples P(X|Y), more exaggerates the label. Each step then costs
    two network evaluations."""
    vlb_steps: int | None = Field(default=None, ge=2)
    """Network evaluations per image for the variational bound on its likelihood. null: one at every timestep. Fewer
    give an unbiased estimate."""


class DDPMConfig(StageConfig):
    """Denoising diffusion (Ho et al. 2020)."""

    renamed: ClassVar[dict[str, str]] = {"unet": "network"}

    kind: Literal["ddpm"]
    """Denoising diffusion (Ho et al. 2020), in pixels or in the latents of a VAE."""
    codec: CodecConfig = PixelCodecConfig()
    """The data that is diffused: pixels, or the latents of a VAE (latent diffusion, Rombach et al. 2022)."""
    network: Annotated[UNetConfig, Kinds("networks")] = UNetConfig()
    """The network that predicts the noise."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule."""
    sampler: GuidedSamplerConfig = GuidedSamplerConfig()
    """How the trained model samples and scores. It may change from one sampling to the next."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of the samples whose label is hidden in training, which teaches P(X) beside P(X|Y). Guidance needs both."""

    def describe(self) -> str:
        return f"latent {super().describe()}" if self.codec.kind == "vae" else super().describe()

    def dependencies(self) -> Sequence[Dependency]:
        if self.codec.kind == "pixels":
            return ()
        return (Dependency("codec", "stage.codec", "run", self.codec.run, self.codec.sha256, needed="always"),)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> DDPM:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "codec", the trained VAE, where latents are diffused.
        """
        if self.codec.kind == "pixels":
            return DDPM(self, shape, PixelCodec())
        assert dependencies is not None, "the VAE is opened by the caller"
        try:
            codec = latent_codec(dependencies["codec"])
        except UserError as error:
            raise UserError(f"stage.codec.run: {error}") from error
        return DDPM(self, shape, codec)


class DDPM:
    """A `Stage`. Timesteps, noise and label dropout are keyed by the samples' positions."""

    def __init__(self, config: DDPMConfig, shape: ImageShape, codec: Codec):
        self.classes = conditional_classes(config.conditional, shape)
        if config.sampler.guidance != 1 and not config.conditional:
            raise UserError(
                "stage.sampler.guidance needs labels to guide by; set stage.conditional=true and train with it"
            )
        if codec.latent and config.sampler.clip:
            raise UserError(
                "stage.sampler.clip=true clips to [-1, 1], a range that latents do not keep to; set it to false"
            )
        self.config = config
        self.codec = codec
        self.code_shape = codec.shape(shape)
        try:
            with torch.device("meta"):
                self.networks()  # what cannot be built is refused here, before any job has started
        except UserError as error:
            about = f"for latents {list(self.code_shape)} instead of images, " if codec.latent else ""
            raise UserError(f"{about}{error}") from error
        schedule = Schedule.build(config.schedule)
        schedule.timesteps(config.sampler.steps, config.sampler.spacing)  # more steps than there are: refused too
        timestep_strata(schedule.T, config.sampler.vlb_steps)
        self.schedule = PerDevice(schedule)

    def networks(self) -> dict[str, nn.Module]:
        channels, resolution, _ = self.code_shape
        nets: dict[str, nn.Module] = {DENOISER: self.config.network.build(channels, resolution, self.classes)}
        if self.codec.latent:
            nets[LATENT_SCALE] = LatentScale(channels, *(self.codec.scale or ()))
        return nets

    @property
    def start_samples(self) -> int:
        """Samples for the scale of latents. Pixels need none."""
        return START_SAMPLES if self.codec.latent else 0

    def start(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> None:
        """Measure the scale of the latents of these samples."""
        chunks = zip(batch.images.split(_CHUNK), rng.positions.split(_CHUNK), strict=True)
        codes = torch.cat([self.codec.encode(images, KeyedRNG(rng.seed, at)) for images, at in chunks])
        cast(LatentScale, nets[LATENT_SCALE]).start(codes if batch.valid is None else codes[batch.valid])

    def phases(self) -> Sequence[Phase]:
        return (Phase("denoise", trains=(DENOISER,)),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x0 = self._encode(nets, batch.images, rng)
        x_t, t, eps = training_pair(self.schedule.on(x0.device), x0, rng)
        labels = None
        if self.classes:
            assert batch.labels is not None, "the loader was asked for labels"
            hidden = rng.uniform("label_dropout") < self.config.label_dropout
            labels = torch.where(hidden, self.classes, batch.labels)
        return Loss(simple_loss(eps, nets[DENOISER](x_t, t, labels)))

    @property
    def generating(self) -> Sequence[str]:
        return (DENOISER, *(f"codec.{name}" for name in self.codec.decoding))

    def borrowed_networks(self) -> dict[str, nn.Module]:
        return {f"codec.{name}": net for name, net in self.codec.nets.items()}

    def evaluations(self) -> int | None:
        """Guidance evaluates each step twice, with the label and without."""
        return self.config.sampler.steps * (1 if self.config.sampler.guidance == 1 else 2)

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        schedule = self.schedule.on(rng.positions.device)

        def eps_model(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return self._predict(nets[DENOISER], x_t, t, labels).float()

        x0 = sample(eps_model, schedule, self.config.sampler, rng, self.code_shape)
        return self.codec.decode(cast(LatentScale, nets[LATENT_SCALE]).inverse(x0) if self.codec.latent else x0)

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> VLBScore:
        """The bound on -log P(X), or on -log P(X|Y) where the stage is conditional and the batch has labels.

        It is that of the chain without guidance, which has no part in the model. Raises UserError for latents.
        """
        if self.codec.latent:
            raise UserError(
                "this run diffuses the latents of a VAE, so its bound is no likelihood of images; score its VAE, or a "
                "run with stage.codec.kind=pixels"
            )
        x0 = self._encode(nets, batch.images, rng)
        labels = batch.labels if self.classes else None
        if self.classes and labels is None:
            labels = torch.full_like(batch.positions, self.classes)

        def eps_model(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return nets[DENOISER](x_t, t, labels).float()

        sampler = self.config.sampler
        return variational_lower_bound(
            eps_model,
            self.schedule.on(x0.device),
            x0,
            rng,
            clip=sampler.clip,
            variance=sampler.variance,
            evaluations=sampler.vlb_steps,
        )

    def _encode(self, nets: Mapping[str, nn.Module], images: Tensor, rng: KeyedRNG) -> Float[Tensor, "b c h w"]:
        codes = self.codec.encode(images, rng)
        return nets[LATENT_SCALE](codes) if self.codec.latent else codes

    def _predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        if not self.classes:
            return denoiser(x_t, t, None)
        empty = torch.full_like(t, self.classes)
        if labels is None:
            return denoiser(x_t, t, empty)
        if self.config.sampler.guidance == 1:
            return denoiser(x_t, t, labels)
        both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, empty]))
        conditional, unconditional = both.float().chunk(2)
        return unconditional + self.config.sampler.guidance * (conditional - unconditional)
