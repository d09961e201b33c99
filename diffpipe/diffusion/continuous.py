"""Schedules with a noise level at every time: EDM's sigmas, and rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffpipe.config import Config
from diffpipe.diffusion.process import Coefficient, NoiseLevel, Path
from diffpipe.diffusion.schedule import Spacing, spaced_ratios
from diffpipe.errors import UserError

_CHAIN = 1000  # levels of the chain whose likelihood is bounded
_MOST_SIGNAL = 0.1  # of sigma_data / sigma_max
_FLOW_RATIOS = (2e-3, 1e3)  # of that chain, for a flow


class EDMScheduleConfig(Config):
    """Noise levels sigma_min to sigma_max, added to x_0 as it is (Karras et al. 2022)."""

    kind: Literal["edm"]
    """The noise levels of EDM (Karras et al. 2022): x_t = x_0 + sigma eps."""
    sigma_min: float = Field(default=0.002, gt=0)
    """The last noise level of a sampler before x_0."""
    sigma_max: float = Field(default=80.0, gt=0)
    """The noise that sampling starts from. At least ten times sigma_data."""
    sigma_data: float = Field(default=0.5, gt=0)
    """The standard deviation of the data: about 0.5 for pixels in [-1, 1], and 1 for latents, which are normalized."""
    rho: float = Field(default=7.0, ge=1, le=100)
    """Spacing of a sampler's levels: even in sigma^(1/rho). 1: even in sigma; 100: nearly even in log sigma."""

    @model_validator(mode="after")
    def _noise_grows(self) -> EDMScheduleConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min}, not below sigma_max {self.sigma_max}")
        return self

    def build(self) -> EDMSchedule:
        """Raises UserError where signal is left at sigma_max, since sampling starts from pure noise."""
        if self.sigma_data > _MOST_SIGNAL * self.sigma_max:
            raise UserError(
                f"stage.schedule.sigma_max {self.sigma_max} leaves signal in the noise that sampling starts from; make "
                f"it at least {self.sigma_data / _MOST_SIGNAL:g}, ten times sigma_data"
            )
        return EDMSchedule(self)


@dataclass(frozen=True)
class EDMSchedule:
    """A `Schedule`. The network's time is log(sigma) / 4 (Karras et al. 2022, table 1)."""

    config: EDMScheduleConfig

    @property
    def path(self) -> Path:
        return "exploding"

    @property
    def start_std(self) -> float:
        return self.config.sigma_max

    def to(self, device: torch.device | str) -> EDMSchedule:
        return self

    def draw_uniform(self, words: Int[Tensor, " b"]) -> NoiseLevel:
        """Uniform in sigma^(1/rho)."""
        low, high = self._ends
        return self._level((low + (high - low) * _unit(words)) ** self.config.rho)

    def draw_log_ratio(self, log_ratio: Float64[Tensor, " b"]) -> NoiseLevel:
        """Also beyond sigma_min and sigma_max, as in the paper."""
        return self._level(log_ratio.exp())

    def position(self, level: NoiseLevel) -> Float64[Tensor, " b"]:
        low, high = self._ends
        return ((level.sigma ** (1 / self.config.rho) - low) / (high - low)).clamp(0, 1)

    def levels(self, steps: int, spacing: Spacing = "trailing") -> list[NoiseLevel]:
        """trailing and karras are both the paper's."""
        if spacing in ("leading", "linspace"):
            raise _no_timesteps("edm", spacing, "trailing, karras or log_snr")
        low, high = self.config.sigma_min, self.config.sigma_max
        return [self.at_ratio(ratio) for ratio in spaced_ratios(high, low, steps, spacing, self.config.rho)]

    def at_ratio(self, ratio: float) -> NoiseLevel:
        return NoiseLevel(1.0, ratio, math.log(ratio) / 4)

    def chain(self) -> NoiseLevel:
        least, most = math.log(self.config.sigma_min), math.log(self.config.sigma_max)
        return self._level(torch.linspace(least, most, _CHAIN, dtype=torch.float64).exp())

    @property
    def _ends(self) -> tuple[float, float]:
        """The schedule's own time at sigma_min and at sigma_max: sigma^(1/rho)."""
        return self.config.sigma_min ** (1 / self.config.rho), self.config.sigma_max ** (1 / self.config.rho)

    def _level(self, sigma: Float64[Tensor, " b"]) -> NoiseLevel:
        return NoiseLevel(torch.ones_like(sigma), sigma, (sigma.log() / 4).float())


class FlowScheduleConfig(Config):
    """The straight path from x_0 to noise, of rectified flow and flow matching."""

    kind: Literal["flow"]
    """The straight path of rectified flow (Liu et al. 2023): x_t = (1 - t) x_0 + t eps, for t from 0 to 1."""
    shift: float = Field(default=1.0, ge=0.01, le=100)
    """Moves training and sampling towards more noise, for images of higher resolution: t becomes s t / (1 + (s - 1) t)
    (Esser et al. 2024, eq. 23). 1: none; below 1: towards less noise."""

    def build(self) -> FlowSchedule:
        return FlowSchedule(self)


@dataclass(frozen=True)
class FlowSchedule:
    """A `Schedule`. The network's time is 1000 t."""

    config: FlowScheduleConfig

    start_std = 1.0

    @property
    def path(self) -> Path:
        return "straight"

    def to(self, device: torch.device | str) -> FlowSchedule:
        return self

    def draw_uniform(self, words: Int[Tensor, " b"]) -> NoiseLevel:
        return self._level(self._shifted(_unit(words)))

    def draw_log_ratio(self, log_ratio: Float64[Tensor, " b"]) -> NoiseLevel:
        """log(sigma / alpha) is the logit of t, so a normal one is the logit-normal t of Esser et al. 2024, eq. 19."""
        return self._level(torch.sigmoid(log_ratio + math.log(self.config.shift)))

    def position(self, level: NoiseLevel) -> Float64[Tensor, " b"]:
        return level.sigma

    def levels(self, steps: int, spacing: Spacing = "trailing") -> list[NoiseLevel]:
        """Even in t before the shift, from 1."""
        if spacing != "trailing":
            raise _no_timesteps("flow", spacing, "trailing")
        times = [float(self._shifted(t)) for t in np.arange(steps, 0, -1) / steps]
        return [NoiseLevel(1 - t, t, 1000 * t) for t in times]

    def at_ratio(self, ratio: float) -> NoiseLevel:
        t = 1.0 if math.isinf(ratio) else ratio / (1 + ratio)
        return NoiseLevel(1 - t, t, 1000 * t)

    def chain(self) -> NoiseLevel:
        least, most = _FLOW_RATIOS
        log_ratio = torch.linspace(math.log(least), math.log(most), _CHAIN, dtype=torch.float64)
        return self._level(torch.sigmoid(log_ratio))

    def _shifted(self, t: Coefficient) -> Coefficient:
        shift = self.config.shift
        return shift * t / ((1 - t) + shift * t)  # exactly 1 at t = 1

    def _level(self, t: Float64[Tensor, " b"]) -> NoiseLevel:
        return NoiseLevel(1 - t, t, (1000 * t).float())


def _unit(words: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """Uniform in the open interval (0, 1)."""
    return (words.double() + 0.5) * 2.0**-32


def _no_timesteps(kind: str, spacing: str, allowed: str) -> UserError:
    return UserError(f"stage.sampler.spacing={spacing} is not for stage.schedule.kind={kind}; use {allowed}")
