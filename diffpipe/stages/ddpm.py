"""The diffusion stage: a denoising network with any target, schedule, weighting and sampler of diffpipe.diffusion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from diffpipe.dependency import TrainedStage
from diffpipe.diffusion.denoiser import Denoise, bounded, denoiser, scaled_input
from diffpipe.diffusion.ode_likelihood import ODEScore, ODESettings, ode_likelihood
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.samplers import check_sampler, sample
from diffpipe.diffusion.schedule import PerDevice, Schedule
from diffpipe.diffusion.timesteps import draw_level
from diffpipe.diffusion.training_loss import NoisedBatch, training_loss
from diffpipe.diffusion.trajectory import ChainState, sample_states
from diffpipe.diffusion.visited_levels import visited_levels
from diffpipe.diffusion.vlb import VLBScore, strided_chain, timestep_strata, variational_lower_bound
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.nn.log_variance import LogVariance
from diffpipe.resolution import Resolution
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.autoguidance import autoguided, guide_problem, unopened_guide
from diffpipe.stages.codec import Codec, require_pixels
from diffpipe.stages.ddpm_coding import ChainCoder
from diffpipe.stages.guidance import check_guidance, check_interval, predict
from diffpipe.stages.labels import conditional_classes, dropped_labels

if TYPE_CHECKING:
    from diffpipe.stages.ddpm_config import DDPMConfig

DENOISER, LATENT_SCALE, LOG_VARIANCE = "denoiser", "latent_scale", "log_variance"
START_SAMPLES = 2000
"""Samples on which the scale of latents is measured: enough for three digits."""
_CHUNK = 100


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
        self.chain_steps: int | None = None
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
        evaluations = sampler.vlb_steps if self.chain_steps is None else None
        options = {"variance": sampler.variance, "evaluations": evaluations, "steps": self.chain_steps}
        return variational_lower_bound(denoise, schedule, x0, rng, **options)

    def score_evaluations(self) -> int:
        """The network evaluations of `score` per image."""
        return self.chain_steps or self.config.sampler.vlb_steps or len(self.schedule.on("cpu").chain().time)

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
        return ChainCoder(denoise, self.schedule.on("cpu"), variance, self.code_shape, device, self.chain_steps)

    def strided(self, steps: int | None) -> DDPM:
        """This stage, with the likelihood and the code of a chain of so many steps: see `strided_chain`."""
        strided_chain(self.schedule.on("cpu"), steps, torch.device("cpu"))  # refuses a number that does not fit
        stage = copy.copy(self)
        stage.chain_steps = steps
        return stage

    def _encode(self, nets: Mapping[str, nn.Module], images: Tensor, rng: KeyedRNG) -> Float[Tensor, "b c h w"]:
        codes = self.codec.encode(images, rng)
        return nets[LATENT_SCALE](codes) if self.codec.latent else codes

    def _decode(self, nets: Mapping[str, nn.Module], x0: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c2 h2 w2"]:
        return self.codec.decode(cast(LatentScale, nets[LATENT_SCALE]).inverse(x0) if self.codec.latent else x0)
