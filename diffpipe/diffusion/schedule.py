"""The noise schedule: beta_t, alpha_bar_t, and the timesteps that a sampler visits.

Timesteps run from 0 to T - 1, one below the 1 to T of the papers. -1 stands for the clean image x_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffpipe.config import Config
from diffpipe.errors import UserError

Spacing = Literal["trailing", "leading", "linspace"]

_COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021, eq. 17: it makes one step's noise about a pixel's quantization
_COSINE_MAX_BETA = 0.999  # the cosine's last beta would be 1, and alpha_bar 0


class ScheduleConfig(Config):
    """The noise schedule of a diffusion."""

    kind: Literal["linear", "cosine"] = "linear"
    """linear: betas of Ho et al. 2020, section 4. cosine: Nichol & Dhariwal 2021, eq. 17, which suits small images."""
    steps: int = Field(default=1000, ge=2)
    """T: the number of timesteps."""
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """The variance that the first timestep adds. Only the linear schedule has it."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """The variance that the last timestep adds. Only the linear schedule has it."""

    @model_validator(mode="after")
    def _noise_grows(self) -> ScheduleConfig:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start is {self.beta_start}, above beta_end {self.beta_end}; noise must grow with t")
        return self


@runtime_checkable
class Movable(Protocol):
    """Tensors that move to a device together."""

    def to(self, device: torch.device, /) -> Any: ...


Tables = TypeVar("Tables", bound=Movable)


class PerDevice(Generic[Tables]):
    """Tables, such as a schedule, copied to each device once."""

    def __init__(self, tables: Tables):
        """tables: on the CPU."""
        self._copies = {torch.device("cpu"): tables}

    def on(self, device: torch.device | str) -> Tables:
        """The copy on this device."""
        device = torch.device(device)
        if device not in self._copies:
            self._copies[device] = self._copies[torch.device("cpu")].to(device)
        return self._copies[device]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of a schedule, and the coefficients of q at given timesteps.

    Coefficients are float64 [b] and cast once, where they meet the data: 1 - alpha_bar_t / alpha_bar_s loses three
    digits of seven in float32, and a vector of b numbers costs nothing.

    betas: float64 [T], the variance that each step adds.
    cumulative: float64 [T + 1], log alpha_bar of x_0 (which is 0), then of timesteps 0 to T - 1.
    """

    betas: Float64[Tensor, " T"]
    log_alpha_bar: Float64[Tensor, " T+1"]

    @classmethod
    def build(cls, config: ScheduleConfig, device: torch.device | str = "cpu") -> Schedule:
        """Linear betas (Ho et al. 2020, section 4) or the cosine's (Nichol & Dhariwal 2021, eq. 17)."""
        if config.kind == "linear":
            betas = torch.linspace(config.beta_start, config.beta_end, config.steps, dtype=torch.float64)
        else:
            time = torch.arange(config.steps + 1, dtype=torch.float64) / config.steps
            alpha_bar = torch.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_COSINE_MAX_BETA)
        log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
        return cls(betas, log_alpha_bar).to(device)

    @property
    def T(self) -> int:  # noqa: N802 - the field's name for it
        return len(self.betas)

    def to(self, device: torch.device | str) -> Schedule:
        return replace(self, betas=self.betas.to(device), log_alpha_bar=self.log_alpha_bar.to(device))

    def alpha_bar(self, t: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The factor on x_0's variance in x_t, for t in -1 … T - 1. It is 1 at t = -1."""
        return self.log_alpha_bar[t + 1].exp()

    def one_minus_alpha_bar(self, t: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The variance of the noise in x_t, precise also where alpha_bar is close to 1. It is 0 at t = -1."""
        return -self.log_alpha_bar[t + 1].expm1()

    def alpha(self, t: Int[Tensor, " b"], s: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The factor on x_s's variance in x_t, alpha_bar_t / alpha_bar_s, for s < t. It is alpha_t for s = t - 1."""
        return (self.log_alpha_bar[t + 1] - self.log_alpha_bar[s + 1]).exp()

    def beta(self, t: Int[Tensor, " b"], s: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The variance of q(x_t | x_s), for s < t. It is beta_t for s = t - 1."""
        return -(self.log_alpha_bar[t + 1] - self.log_alpha_bar[s + 1]).expm1()

    def timesteps(self, steps: int, spacing: Spacing = "trailing") -> list[int]:
        """The timesteps that a sampler with this many steps visits, descending (Lin et al. 2023, table 2).

        Only "trailing" starts from T - 1 for every number of steps. There x_t is the noise that samplers start from.
        Raises UserError where there are more steps than timesteps.
        """
        if not 1 <= steps <= self.T:
            raise UserError(
                f"the sampler's steps are {steps}, but the schedule has {self.T}: ask for 1 to {self.T} steps"
            )
        match spacing:
            case "trailing":  # arange's float steps can add one entry, near 0
                timesteps = np.arange(self.T, 0, -self.T / steps)[:steps].round() - 1
            case "leading":
                timesteps = np.arange(steps)[::-1] * (self.T // steps)
            case "linspace":
                timesteps = np.linspace(0, self.T - 1, steps)[::-1].round()
        return [int(t) for t in timesteps]
