"""The denoising diffusion GAN (Xiao, Kreis & Vahdat 2022): a diffusion model that denoises in a few large steps.

A large step's true reverse has many modes, which no Gaussian fits. So each step's x_0 is drawn by a generator from x_t
and a latent, and a discriminator compares the x_{t-1} that follows from it with one that the forward process made; or
that x_0 itself with the real one, as in adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.dependency import Dependency, TrainedStage
from diffpipe.diffusion.parameterization import x0_from_eps
from diffpipe.diffusion.process import NoiseLevel, append_dims, q_sample, q_step, reverse_step
from diffpipe.diffusion.schedule import DiscreteScheduleConfig, PerDevice
from diffpipe.diffusion.trajectory import ChainState, collect, evenly, final_state
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Loss, Phase
from diffpipe.nn.denoising import DenoisingDiscriminator, DenoisingGenerator, start_from
from diffpipe.nn.unet import UNetConfig
from diffpipe.plural import plural
from diffpipe.rng import RNG, KeyedRNG
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.config import StageConfig
from diffpipe.stages.ddpm import DENOISER
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.gan import LatentSamplerConfig
from diffpipe.stages.gan_losses import DISCRIMINATOR, GENERATOR, AdversarialLossConfig, adversarial_loss
from diffpipe.stages.labels import conditional_classes, labels_to_generate, repeated
from diffpipe.stages.large_steps import LargeStepsConfig, NamedLevels, SDEStepsConfig

_NOISE_ERROR = 1 / 400


class TeacherConfig(Config):
    """A trained DDPM, of the same network and the same images."""

    run: str
    """The teacher's run directory, or one checkpoint in it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the manifest.json of the teacher's checkpoint; null: the newest one when training starts."""


class AdversarialConfig(AdversarialLossConfig, StageConfig):
    """A few-step denoiser trained against a discriminator."""

    renamed: ClassVar[dict[str, str]] = {
        "unet": "network",
        "compared": "discriminator_input",
        "focus": "timestep_power",
    }

    kind: Literal["adversarial"]
    """A denoising diffusion GAN (Xiao et al. 2022): a diffusion model with a few large steps."""
    teacher: TeacherConfig | None = None
    """A DDPM whose weights both networks start from; null: from scratch."""
    network: UNetConfig = UNetConfig()
    """The generator. The discriminator is the same network's encoder."""
    latent: int = Field(default=64, ge=1)
    """Numbers in the latent vector of each step."""
    schedule: LargeStepsConfig = SDEStepsConfig()
    """The large steps."""
    levels: DiscreteScheduleConfig = DiscreteScheduleConfig(kind="cosine")
    """The schedule that noise levels are named by: the networks are conditioned on its nearest timestep. With a teacher
    it is the teacher's schedule."""
    discriminator_input: Literal["x_prev", "x_0"] = "x_prev"
    """The discriminator's input beside x_t: x_{t-1}, as in the paper, or x_0. The noise in x_{t-1} keeps the two
    networks balanced, and hides detail from a new discriminator. x_0 shows the detail, and needs both penalties."""
    timestep_power: float = Field(default=1.0, gt=0)
    """The step t is floor(T u^timestep_power) for a uniform u. Above 1, the last steps of sampling, in which the
    details appear, are trained more often."""
    sampler: LatentSamplerConfig = LatentSamplerConfig()
    """How the trained model samples. It may change from one sampling to the next."""
    conditional: bool = False
    """Train P(X|Y) for the labels Y of the data, which needs data.labels=true."""

    def dependencies(self) -> Sequence[Dependency]:
        if self.teacher is None:
            return ()
        return (Dependency("teacher", "stage.teacher", "run", self.teacher.run, self.teacher.sha256, needed="start"),)

    def build(self, shape: ImageShape, dependencies: Mapping[str, Any] | None = None) -> AdversarialDiffusion:
        """The stage for images of this shape. Raises UserError where they do not fit each other.

        dependencies: "teacher", the trained DDPM that both networks start from, where training is to start.
        """
        teacher = (dependencies or {}).get("teacher")
        return AdversarialDiffusion(self, shape, None if teacher is None else self._teacher_weights(teacher, shape))

    def _teacher_weights(self, teacher: TrainedStage, shape: ImageShape) -> dict[str, Tensor]:
        problem = self._teacher_problem(teacher, shape)
        if problem is not None:
            raise UserError(f"stage.teacher.run: {teacher.path} {problem}")
        return {name: value.cpu() for name, value in teacher.nets[DENOISER].state_dict().items()}

    def _teacher_problem(self, teacher: TrainedStage, shape: ImageShape) -> str | None:
        """The reason why the networks cannot start from that run's, or None."""
        config = teacher.config
        if not isinstance(config, DDPMConfig):
            return f"is a run of stage.kind {config.kind}; give one of stage.kind=ddpm"
        if config.codec.kind != "pixels":
            return "diffuses latents; give a run of stage.codec.kind=pixels"
        ours = {"stage.network": self.network, "stage.levels": self.levels, "stage.conditional": self.conditional}
        theirs = (config.network, config.schedule, config.conditional)
        for (key, own), wanted in zip(ours.items(), theirs, strict=True):
            if own != wanted:
                return f"was trained with another {key}: make it {wanted!r}, as there"
        if teacher.shape != shape:
            return f"was trained on images of {_describe(teacher.shape)}, and these are of {_describe(shape)}"
        return None


class AdversarialDiffusion:
    """A `Stage`. Timesteps, noise and latents are keyed by the samples' positions, separately in each phase."""

    generating = (GENERATOR,)

    def __init__(self, config: AdversarialConfig, shape: ImageShape, teacher: Mapping[str, Tensor] | None = None):
        self.config = config
        self.shape = shape
        self.classes = conditional_classes(config.conditional, shape)
        self.codec = PixelCodec()
        with torch.device("meta"):
            self._fresh()  # what cannot be built is refused here, before any job has started
        self.teacher = teacher
        levels = config.levels.build()
        self.levels = PerDevice(NamedLevels.of(config.schedule.build(levels), levels))

    def networks(self) -> dict[str, nn.Module]:
        generator, discriminator = self._fresh()
        if self.teacher is not None:
            start_from(generator, self.teacher)
            start_from(discriminator, self.teacher)
        return {GENERATOR: generator, DISCRIMINATOR: discriminator}

    def _fresh(self) -> tuple[DenoisingGenerator, DenoisingDiscriminator]:
        config, (channels, resolution, _) = self.config, self.shape
        generator = DenoisingGenerator(config.network, config.latent, channels, resolution, self.classes)
        return generator, DenoisingDiscriminator(config.network, channels, resolution, self.classes)

    def phases(self) -> Sequence[Phase]:
        return self.config.phases()

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x0 = self.codec.encode(batch.images)
        (schedule, embedding_timesteps), shape = self.levels.on(x0.device), x0.shape[1:]
        labels = batch.labels if self.classes else None
        u = rng.uniform(f"timestep/{phase.name}").double()
        t = (u**self.config.timestep_power * schedule.T).long()
        level, lower = schedule.level(t), schedule.level(t - 1)
        x_prev = q_sample(lower, x0, rng.normal(f"noise/{phase.name}", shape))
        x_t = q_step(level, lower, x_prev, rng.normal(f"step/{phase.name}", shape))

        ends = self.config.discriminator_input == "x_0"
        embedding_timestep = embedding_timesteps[t + 1 if ends else t]

        def generate() -> Float[Tensor, "b c h w"]:
            z = rng.normal(f"latent/{phase.name}", (self.config.latent,))
            x0_of_x_t = self._denoised(nets[GENERATOR], x_t, t, z, labels)
            if ends:
                return x0_of_x_t
            return reverse_step(level, lower, x0_of_x_t, x_t, rng.normal(f"reverse/{phase.name}", shape))

        def discriminator(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
            n = len(x)
            return nets[DISCRIMINATOR](
                x, x_t.repeat(n // len(x_t), 1, 1, 1), repeated(embedding_timestep, n), repeated(labels, n)
            )

        return adversarial_loss(self.config, phase, discriminator, x0 if ends else x_prev, generate)

    def evaluations(self) -> int | None:
        return self.levels.on("cpu").schedule.T

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        return self.codec.decode(self._sample(nets, rng, labels, lambda *_: None))

    @torch.no_grad()
    def trajectory(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None, most: int
    ) -> list[ChainState]:
        schedule = self.levels.on("cpu").schedule
        states: list[ChainState] = []
        shown = {schedule.T - 1 - i for i in evenly(schedule.T, most - 1)}
        collected = collect(states, self.codec.decode)

        def show(step: int, x_t: Tensor, x0: Tensor) -> None:
            if step in shown:
                level = schedule.level(torch.tensor([step]))
                collected(NoiseLevel(level.alpha.item(), level.sigma.item(), step), x_t, x0)

        images = self.codec.decode(self._sample(nets, rng, labels, show))
        return [*states, final_state(images)]

    def _sample(
        self,
        nets: Mapping[str, nn.Module],
        rng: RNG,
        labels: Int[Tensor, " b"] | None,
        show: Callable[[int, Tensor, Tensor], None],
    ) -> Float[Tensor, "b c h w"]:
        """x_0. show: gets the number of each step, x_t and the x_0 that the generator draws from it."""
        schedule, _ = self.levels.on(rng.positions.device)
        shape = self.shape.chw
        labels = labels_to_generate(self.classes, labels, rng)
        x_t = rng.normal("start", shape)
        for step in reversed(range(schedule.T)):
            t = torch.full_like(rng.positions, step)
            z = self.config.sampler.temperature * rng.normal("latent", (self.config.latent,), stream=step)
            x0 = self._denoised(nets[GENERATOR], x_t, t, z, labels)
            show(step, x_t, x0)
            noise = rng.normal("reverse", shape, stream=step)
            x_t = reverse_step(schedule.level(t), schedule.level(t - 1), x0, x_t, noise)
        return x_t

    def _denoised(
        self, generator: nn.Module, x_t: Tensor, t: Tensor, z: Tensor, labels: Tensor | None
    ) -> Float[Tensor, "b c h w"]:
        """The generator's x_0, from its prediction of the noise in x_t, as in a DDPM.

        Where x_t is nearly all noise, an error in that would come out many times as large in x_0, so x_0 is drawn
        towards zero there: as far as is best for images of unit size and an error in the noise of variance 1/400.
        """
        schedule, embedding_timesteps = self.levels.on(x_t.device)
        noise = generator(x_t, embedding_timesteps[t + 1], z, labels).float()
        trust = 1 / (1 + _NOISE_ERROR * schedule.one_minus_alpha_bar(t) / schedule.alpha_bar(t))
        x0 = x0_from_eps(schedule.level(t), x_t, noise)
        x0 = append_dims(trust, x0) * x0
        # Pixels lie in [-1, 1]; an image beyond that would be recognized as generated by that alone.
        within = (t == 0) | (self.config.discriminator_input == "x_0")
        return torch.where(rearrange(within, "b -> b 1 1 1"), x0.clamp(-1, 1), x0)


def _describe(shape: ImageShape) -> str:
    return f"{' × '.join(map(str, shape.chw))} in {plural(shape.classes, 'class', 'classes')}"
