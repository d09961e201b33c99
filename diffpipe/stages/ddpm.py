"""The diffusion stage: a denoising network with any target, schedule, weighting and sampler of diffpipe.diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffpipe.config.kinds import Kinds
from diffpipe.dependency import Dependency, TrainedStage
from diffpipe.diffusion import combinations
from diffpipe.diffusion.combinations import ScheduleConfig
from diffpipe.diffusion.denoiser import Denoise, bounded, denoiser, scaled_input
from diffpipe.diffusion.objective import WeightingConfig
from diffpipe.diffusion.ode_likelihood import ODEScore, ODESettings, ode_likelihood
from diffpipe.diffusion.parameterization import Parameterization, Prediction
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.samplers import check_sampler, sample
from diffpipe.diffusion.schedule import DiscreteScheduleConfig, PerDevice, Schedule
from diffpipe.diffusion.timesteps import TimestepsConfig, draw_level
from diffpipe.diffusion.training_loss import NoisedBatch, training_loss
from diffpipe.diffusion.trajectory import ChainState, sample_states
from diffpipe.diffusion.visited_levels import visited_levels
from diffpipe.diffusion.vlb import VLBScore, timestep_strata, variational_lower_bound
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase
from diffpipe.nn.adm import ADMConfig
from diffpipe.nn.dit import DiTConfig
from diffpipe.nn.edm2 import EDM2Config
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.nn.log_variance import LogVariance
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import Resolution
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.autoguidance import autoguided, guide_problem, unopened_guide
from diffpipe.stages.codec import Codec, CodecConfig, PixelCodec, PixelCodecConfig, require_pixels
from diffpipe.stages.config import StageConfig
from diffpipe.stages.ddpm_coding import ChainCoder
from diffpipe.stages.guidance import GuidedSamplerConfig, check_guidance, check_interval, predict
from diffpipe.stages.labels import conditional_classes, dropped_labels
from diffpipe.stages.latents import latent_codec

DENOISER, LATENT_SCALE, LOG_VARIANCE = "denoiser", "latent_scale", "log_variance"
START_SAMPLES = 2000
"""Samples on which the scale of latents is measured: enough for three digits."""
_CHUNK = 100


class DDPMConfig(StageConfig):
    """Denoising diffusion (Ho et al. 2020)."""

    renamed: ClassVar[dict[str, str]] = {"unet": "network"}

    kind: Literal["ddpm"]
    """Denoising diffusion (Ho et al. 2020), in pixels or in the latents of a VAE."""
    codec: CodecConfig = PixelCodecConfig()
    """The data that is diffused: pixels, or the latents of a VAE (latent diffusion, Rombach et al. 2022)."""
    network: Annotated[
        UNetConfig | ADMConfig | EDM2Config | DiTConfig, Field(discriminator="kind"), Kinds("networks")
    ] = UNetConfig()
    """The network that predicts the noise."""
    prediction: Prediction = "eps"
    """The target of the network: the noise (eps, Ho et al. 2020), the image (x0), v (Salimans & Ho 2022), EDM's
    preconditioned target (edm, Karras et al. 2022), or the velocity of a rectified flow (flow, Liu et al. 2023)."""
    schedule: Annotated[ScheduleConfig, Field(discriminator="kind")] = DiscreteScheduleConfig()
    """The noise levels. Where its kind is left out, prediction edm and flow have the schedules of that name."""
    timesteps: TimestepsConfig = TimestepsConfig()
    """How the noise levels of training are drawn."""
    weighting: WeightingConfig = WeightingConfig()
    """How much the noise levels count in the loss."""
    one_sided_ends: bool = False
    """Where a pixel is black or white, which is an end of the range [-1, 1], a predicted x_0 beyond that end is no
    error: sampling clips it. So a network need not hit a plain background exactly. It takes prediction=x0 in pixels."""
    learned_variance: bool = False
    """Learn the variance of the reverse steps too, with the hybrid loss of Nichol & Dhariwal 2021. It takes a schedule
    with timesteps."""
    sampler: GuidedSamplerConfig = GuidedSamplerConfig()
    """How the trained model samples and scores. It may change from one sampling to the next."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""
    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the samples whose label is hidden in training, which teaches P(X) beside P(X|Y). Guidance needs both.
    For P(X) alone set conditional=false."""

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_the_prediction(cls, tree: Any) -> Any:
        return combinations.with_schedule_kind(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _prediction_fits_the_schedule(self) -> DDPMConfig:
        settings = {"learned_variance": self.learned_variance, "one_sided_ends": self.one_sided_ends}
        if problem := combinations.problem(self.prediction, self.schedule, **settings):
            raise ValueError(problem)
        if self.one_sided_ends and self.codec.kind != "pixels":
            raise ValueError("one_sided_ends is about black and white pixels, and codec.kind is vae; leave it out")
        if self.network.kind == "edm2" and self.prediction != "edm":
            raise ValueError(
                f"network.kind edm2 embeds ln(sigma) / 4, which prediction {self.prediction} does not have; set "
                "prediction=edm"
            )
        return self

    @property
    def parameterization(self) -> Parameterization:
        """The meaning of the network's output."""
        return Parameterization(self.prediction, getattr(self.schedule, "sigma_data", 0.5))

    def describe(self) -> str:
        return f"latent {super().describe()}" if self.codec.kind == "vae" else super().describe()

    def dependencies(self) -> Sequence[Dependency]:
        needed: list[Dependency] = []
        if self.codec.kind == "vae":
            codec = self.codec
            needed.append(Dependency("codec", "stage.codec", "run", codec.run, codec.sha256, needed="always"))
        if self.sampler.guide is not None:
            guide = self.sampler.guide
            needed.append(
                Dependency("guide", "stage.sampler.guide", "run", guide.run, guide.sha256, needed="generation")
            )
        return tuple(needed)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> DDPM:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "codec", the trained VAE, where latents are diffused; "guide", another diffusion, where it guides.
        """
        guide = (dependencies or {}).get("guide")
        if self.codec.kind == "pixels":
            return DDPM(self, shape, PixelCodec(), guide)
        assert dependencies is not None, "the VAE is opened by the caller"
        try:
            codec = latent_codec(dependencies["codec"])
        except UserError as error:
            raise UserError(f"stage.codec.run: {error}") from error
        return DDPM(self, shape, codec, guide)


class DDPM:
    """A `Stage`. Timesteps, noise and label dropout are keyed by the samples' positions."""

    def __init__(self, config: DDPMConfig, shape: ImageShape, codec: Codec, guide: TrainedStage | None = None):
        self.classes = conditional_classes(config.conditional, shape)
        check_guidance(config.sampler, conditional=config.conditional, label_dropout=config.label_dropout)
        if codec.latent and config.sampler.clip:
            raise UserError(
                "stage.sampler.clip=true clips to [-1, 1], a range that latents do not keep to; set it to false"
            )
        self.config, self.codec = config, codec
        self.code_shape = codec.shape(shape)
        try:
            with torch.device("meta"):
                self.networks()  # what cannot be built is refused here, before any job has started
        except UserError as error:
            about = f"for latents {list(self.code_shape)} instead of images, " if codec.latent else ""
            raise UserError(f"{about}{error}") from error
        schedule: Schedule = config.schedule.build()
        check_sampler(schedule, config.sampler)  # more steps than there are: refused too
        timestep_strata(len(schedule.chain().time), config.sampler.vlb_steps)
        if config.sampler.guidance_interval is not None:
            check_interval(config.sampler, visited_levels(schedule, config.sampler))
        self.schedule = PerDevice(schedule)
        self.parameterization = config.parameterization
        if problem := guide and guide_problem(guide, self):
            raise UserError(f"stage.sampler.guide.run: {problem}")
        self.guide = guide

    def networks(self) -> dict[str, nn.Module]:
        channels, resolution = self.code_shape[0], Resolution(*self.code_shape[1:])
        outputs = {"out_channels": 2 * channels} if self.config.learned_variance else {}
        nets: dict[str, nn.Module] = {
            DENOISER: self.config.network.build(channels, resolution, self.classes, **outputs)
        }
        if self.codec.latent:
            nets[LATENT_SCALE] = LatentScale(channels, *(self.codec.scale or ()))
        if self.config.weighting.kind == "learned":
            nets[LOG_VARIANCE] = LogVariance(scale=1.0 if self.config.prediction == "edm" else 1e-3)
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
        learned = (LOG_VARIANCE,) if self.config.weighting.kind == "learned" else ()
        return (Phase("denoise", trains=(DENOISER, *learned)),)

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The weighted square error of the network's target. metrics: the loss in each quarter of the noise levels."""
        x0 = self._encode(nets, batch.images, rng)
        schedule = self.schedule.on(x0.device)
        level = draw_level(schedule, self.config.timesteps, self.config.schedule.kind, rng)
        noised = NoisedBatch.of(x0, rng.normal("noise", x0.shape[1:]), level)
        labels = None
        if self.classes:
            assert batch.labels is not None, "the loader was asked for labels"
            labels = dropped_labels(batch.labels, self.classes, self.config.label_dropout, rng)
        output = nets[DENOISER](scaled_input(self.parameterization, level, noised.x_t), level.time, labels)
        log_variance = nets[LOG_VARIANCE](level.time) if self.config.weighting.kind == "learned" else None
        ends = self.config.one_sided_ends
        return training_loss(
            self.parameterization, schedule, self.config.weighting, noised, output, log_variance, one_sided_ends=ends
        )

    @property
    def generating(self) -> Sequence[str]:
        guide = (f"guide.{DENOISER}",) if self.guide else ()
        return (DENOISER, *guide, *(f"codec.{name}" for name in self.codec.decoding))

    def borrowed_networks(self) -> dict[str, nn.Module]:
        guide = {f"guide.{DENOISER}": self.guide.nets[DENOISER]} if self.guide else {}
        return guide | {f"codec.{name}": net for name, net in self.codec.nets.items()}

    def evaluations(self) -> int | None:
        """Guidance evaluates a step twice: with the label and without, or by the guide's network too."""
        sampler = self.config.sampler
        return sum(2 if sampler.guides(level) else 1 for level in visited_levels(self.schedule.on("cpu"), sampler))

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        schedule, sampler = self.schedule.on("cpu"), self.config.sampler
        return self._decode(nets, sample(self.denoise(nets, labels), schedule, sampler, rng, self.code_shape))

    @torch.no_grad()
    def trajectory(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None, most: int
    ) -> list[ChainState]:
        schedule, sampler, decode = self.schedule.on("cpu"), self.config.sampler, partial(self._decode, nets)
        return sample_states(self.denoise(nets, labels), schedule, sampler, rng, self.code_shape, decode, most)

    def denoise(
        self, nets: Mapping[str, nn.Module], labels: Int[Tensor, " b"] | None, *, guide: bool = True
    ) -> Denoise:
        """The trained network as samplers and bounds see it, in the space of the codec.

        labels: None for P(X). guide: with the sampler's guidance. Raises UserError where its run is not opened.
        """
        sampler = self.config.sampler
        denoise = self.unbounded(nets, labels, guide=guide and sampler.guide is None)
        if guide and sampler.guide is not None:
            if self.guide is None:
                raise unopened_guide(sampler.guide)
            denoise = autoguided(denoise, self, self.guide, labels)
        return bounded(denoise, clip=sampler.clip, dynamic_threshold=sampler.dynamic_threshold)

    def unbounded(self, nets: Mapping[str, nn.Module], labels: Int[Tensor, " b"] | None, *, guide: bool) -> Denoise:
        """The trained network before its x_0 is clipped. guide: with classifier-free guidance."""
        sampler = self.config.sampler

        def network(x: Float[Tensor, "b c h w"], t: Tensor, level: NoiseLevel) -> Float[Tensor, "b c2 h w"]:
            guidance = sampler.guidance if guide and sampler.guides(level) else 1.0
            return predict(nets[DENOISER], x.float(), t, labels, self.classes, guidance).float()

        return denoiser(network, self.parameterization, learned_variance=self.config.learned_variance)

    @torch.no_grad()
    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> VLBScore:
        """The bound on -log P(X), or on -log P(X|Y) where the stage is conditional and the batch has labels.

        It is that of the chain without guidance, which has no part in the model. Raises UserError for latents.
        """
        require_pixels(self.codec)
        x0, denoise = self.codec.encode(batch.images, rng), self.denoise(nets, batch.labels, guide=False)
        schedule, sampler = self.schedule.on(x0.device), self.config.sampler
        options = {"variance": sampler.variance, "evaluations": sampler.vlb_steps}
        return variational_lower_bound(denoise, schedule, x0, rng, **options)

    def ode_score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG, settings: ODESettings) -> ODEScore:
        """The same by the probability flow, see `ode_likelihood`: without guidance, whose flow reverses no noising."""
        require_pixels(self.codec)
        x0, denoise = self.codec.encode(batch.images, rng), self.denoise(nets, batch.labels, guide=False)
        return ode_likelihood(denoise, self.schedule.on("cpu"), x0, rng, settings)

    def image_coder(self, nets: Mapping[str, nn.Module]) -> ChainCoder:
        """Bits-back along the chain of `score`. Raises UserError for latents."""
        require_pixels(self.codec)
        device, denoise = next(nets[DENOISER].parameters()).device, partial(self.denoise, nets, guide=False)
        variance = self.config.sampler.variance
        return ChainCoder(denoise, self.schedule.on("cpu"), variance, self.code_shape, device)

    def _encode(self, nets: Mapping[str, nn.Module], images: Tensor, rng: KeyedRNG) -> Float[Tensor, "b c h w"]:
        codes = self.codec.encode(images, rng)
        return nets[LATENT_SCALE](codes) if self.codec.latent else codes

    def _decode(self, nets: Mapping[str, nn.Module], x0: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c2 h2 w2"]:
        return self.codec.decode(cast(LatentScale, nets[LATENT_SCALE]).inverse(x0) if self.codec.latent else x0)
