"""The few large steps of the denoising diffusion GAN, and the timesteps that their noise levels are named by."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from diffpipe.config import Config
from diffpipe.diffusion.schedule import DiscreteSchedule
from diffpipe.errors import UserError


class SDEStepsConfig(Config):
    """The variance-preserving SDE of Song et al. 2021, cut into a few equal pieces."""

    kind: Literal["sde"] = "sde"
    """Equal pieces of the variance-preserving SDE of Song et al. 2021."""
    steps: int = Field(default=4, ge=1, le=8)
    """T: network evaluations per image, in training and in sampling alike."""
    beta_min: float = Field(default=0.1, gt=0)
    """The SDE's rate of noise at its start."""
    beta_max: float = Field(default=20.0, gt=0)
    """The SDE's rate of noise at its end."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """The SDE's time at which the first piece begins; the last one ends at 1. The code of Xiao et al. has 0.001."""

    @model_validator(mode="after")
    def _noise_grows(self) -> SDEStepsConfig:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min is {self.beta_min}, above beta_max {self.beta_max}; noise must grow with t")
        return self

    def build(self, levels: DiscreteSchedule) -> DiscreteSchedule:
        """beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2t - 1) / 2T^2), t from 1 to T (Xiao et al. 2022).

        That is for pieces from time 0 to 1. Those from `start` to 1 are shorter, and later.
        """
        t = torch.arange(1, self.steps + 1, dtype=torch.float64)
        slope, span = self.beta_max - self.beta_min, 1 - self.start
        log_alpha = -self.beta_min * span / self.steps - slope * span**2 * (2 * t - 1) / (2 * self.steps**2)
        log_alpha = log_alpha - slope * self.start * span / self.steps
        return DiscreteSchedule(-log_alpha.expm1(), torch.cat([t.new_zeros(1), log_alpha.cumsum(0)]))


class TimestepsConfig(Config):
    """A few timesteps of `stage.levels`, from one to the next in one step."""

    kind: Literal["timesteps"]
    """Timesteps of stage.levels."""
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=8)
    """The timesteps, ascending. Sampling starts from the last one, with pure noise."""

    @model_validator(mode="after")
    def _ascending(self) -> TimestepsConfig:
        if any(a >= b for a, b in pairwise(self.timesteps)):
            raise ValueError(f"timesteps {list(self.timesteps)} must ascend")
        return self

    def build(self, levels: DiscreteSchedule) -> DiscreteSchedule:
        """Raises UserError where `levels` has no such timestep."""
        if self.timesteps[-1] >= levels.T:
            raise UserError(
                f"stage.schedule.timesteps: {self.timesteps[-1]} is none of stage.levels, which end at {levels.T - 1}"
            )
        log_alpha_bar = levels.log_alpha_bar[torch.tensor([0, *(t + 1 for t in self.timesteps)])]
        return DiscreteSchedule(-log_alpha_bar.diff().expm1(), log_alpha_bar)


LargeStepsConfig = Annotated[SDEStepsConfig | TimestepsConfig, Field(discriminator="kind")]


class NamedLevels(NamedTuple):
    """The large steps, and for each of their noise levels the timestep in the networks' embedding.

    embedding_timesteps: int64 [T + 1], for x_0 (timestep 0), then for x_t with t from 0 to T - 1.
    """

    schedule: DiscreteSchedule
    embedding_timesteps: Int[Tensor, " levels"]

    @classmethod
    def of(cls, large: DiscreteSchedule, fine: DiscreteSchedule) -> NamedLevels:
        distance = (large.log_alpha_bar[1:, None] - fine.log_alpha_bar[None, 1:]).abs()
        return cls(large, torch.cat([torch.zeros(1, dtype=torch.int64), distance.argmin(dim=1)]))

    def to(self, device: torch.device) -> NamedLevels:
        return NamedLevels(self.schedule.to(device), self.embedding_timesteps.to(device))
