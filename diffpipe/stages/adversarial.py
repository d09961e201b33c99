"""The denoising diffusion GAN (Xiao, Kreis & Vahdat 2022): a diffusion model that denoises in a few large steps.

A large step's true reverse has many modes, which no Gaussian fits. So each step's x_0 is drawn by a generator from x_t
and a latent, and a discriminator compares the x_{t-1} that follows from it with one that the forward process made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.contract import Batch, ImageShape, Loss, Phase
from diffpipe.diffusion.process import over_pixels, posterior, q_sample, q_step
from diffpipe.diffusion.schedule import Schedule
from diffpipe.nn.discriminator import Discriminator, DiscriminatorConfig
from diffpipe.nn.generator import DenoisingGenerator
from diffpipe.nn.unet import UNetConfig
from diffpipe.rng import Draws
from diffpipe.stages.codec import PixelCodec
from diffpipe.stages.games import DISCRIMINATOR, GENERATOR, Game, GameConfig, play
from diffpipe.stages.gan import LatentSamplerConfig, tiled, wanted_labels
from diffpipe.stages.labels import conditional_classes


class LargeStepsConfig(Config):
    """The variance-preserving SDE of Song et al. 2021, cut into a few equal pieces."""

    steps: int = Field(default=4, ge=1, le=8)
    """T: network evaluations an image, in training and in sampling alike."""
    beta_min: float = Field(default=0.1, gt=0)
    beta_max: float = Field(default=20.0, gt=0)

    @model_validator(mode="after")
    def _noise_grows(self) -> LargeStepsConfig:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min is {self.beta_min}, above beta_max {self.beta_max}; noise must grow with t")
        return self

    def build(self) -> Schedule:
        """beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2t - 1) / 2T^2), t from 1 to T (Xiao et al. 2022)."""
        t = torch.arange(1, self.steps + 1, dtype=torch.float64)
        slope = self.beta_max - self.beta_min
        log_alpha = -self.beta_min / self.steps - slope * (2 * t - 1) / (2 * self.steps**2)
        return Schedule(-log_alpha.expm1(), torch.cat([t.new_zeros(1), log_alpha.cumsum(0)]))


class AdversarialConfig(GameConfig):
    """A few-step denoiser trained against a discriminator. `conditional` makes it P(X|Y) for the labels Y."""

    kind: Literal["adversarial"]
    loss: Game = "non_saturating"
    r2: float = Field(default=0.0, ge=0)
    unet: UNetConfig = UNetConfig()
    latent: int = Field(default=64, ge=1)
    """Numbers in the latent vector of each step."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    schedule: LargeStepsConfig = LargeStepsConfig()
    sampler: LatentSamplerConfig = LatentSamplerConfig()
    conditional: bool = False

    def build(self, shape: ImageShape) -> AdversarialDiffusion:
        """The stage for images of this shape. Raises UserError where they do not fit each other."""
        return AdversarialDiffusion(self, shape)


class AdversarialDiffusion:
    """A `Stage`. Timesteps, noise and latents are keyed by the samples' positions, apart in each phase."""

    def __init__(self, config: AdversarialConfig, shape: ImageShape):
        self.config = config
        self.shape = shape
        self.classes = conditional_classes(config.conditional, shape)
        self.codec = PixelCodec()
        with torch.device("meta"):
            self.networks()  # what cannot be built is refused here, before any job has started
        self._schedules = {torch.device("cpu"): config.schedule.build()}

    def networks(self) -> dict[str, nn.Module]:
        config, (channels, resolution, _) = self.config, self.shape
        return {
            GENERATOR: DenoisingGenerator(config.unet, config.latent, channels, resolution, self.classes),
            DISCRIMINATOR: Discriminator(config.discriminator, 2 * channels, resolution, self.classes, timed=True),
        }

    def phases(self) -> Sequence[Phase]:
        return self.config.phases()

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, draws: Draws) -> Loss:
        x0 = self.codec.encode(batch.images)
        schedule, shape = self._schedule(x0.device), x0.shape[1:]
        labels = batch.labels if self.classes else None
        t = draws.integers(f"timestep/{phase.name}", schedule.T)
        x_prev = q_sample(schedule, x0, t - 1, draws.normal(f"noise/{phase.name}", shape))
        x_t = q_step(schedule, x_prev, t, draws.normal(f"step/{phase.name}", shape))

        def generate() -> Float[Tensor, "b c h w"]:
            z = draws.normal(f"latent/{phase.name}", (self.config.latent,))
            x0_hat = nets[GENERATOR](x_t, t, z, labels).float()
            return self._reverse(schedule, x0_hat, x_t, t, draws.normal(f"reverse/{phase.name}", shape))

        def judge(x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
            n = len(x)
            pairs = torch.cat([x, x_t.repeat(n // len(x_t), 1, 1, 1)], dim=1)
            return nets[DISCRIMINATOR](pairs, tiled(labels, n), tiled(t, n))

        return play(self.config, phase, judge, x_prev, generate)

    @torch.no_grad()
    def generate(
        self, nets: Mapping[str, nn.Module], draws: Draws, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        schedule = self._schedule(draws.positions.device)
        shape = (self.shape.channels, self.shape.resolution, self.shape.resolution)
        labels = wanted_labels(self.classes, labels, draws)
        x_t = draws.normal("start", shape)
        for step in reversed(range(schedule.T)):
            t = torch.full_like(draws.positions, step)
            z = self.config.sampler.temperature * draws.normal("latent", (self.config.latent,), stream=step)
            x0 = nets[GENERATOR](x_t, t, z, labels).float()
            x_t = self._reverse(schedule, x0, x_t, t, draws.normal("reverse", shape, stream=step))
        return self.codec.decode(x_t)

    def _reverse(self, schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_{t-1} ~ q(x_{t-1} | x_t, x_0) for standard normal eps; from t = 0 it is x_0 itself."""
        mean, variance = posterior(schedule, x0, x_t, t, t - 1)
        return mean + over_pixels(variance.sqrt(), mean) * eps

    def _schedule(self, device: torch.device) -> Schedule:
        if device not in self._schedules:
            self._schedules[device] = self._schedules[torch.device("cpu")].to(device)
        return self._schedules[device]
