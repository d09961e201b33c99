"""Noise schedules: which noise levels training draws from, and which ones a sampler visits.

`DiscreteSchedule` has timesteps 0 to T - 1, one below the 1 to T of the papers; -1 stands for the clean image x_0. The
schedules of `continuous.py` have a level at every time. All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffpipe.config import Config
from diffpipe.diffusion.process import NoiseLevel, Path
from diffpipe.errors import UserError

Spacing = Literal["trailing", "leading", "linspace", "karras", "log_snr"]

_COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021, eq. 17: it makes one step's noise about a pixel's quantization
_MAX_BETA = 0.999  # the cosine's last beta would be 1, and alpha_bar 0
_MAX_SIGNAL = 0.01  # of the variance of x_T: Stable Diffusion's schedule has 0.0047
_RHO = 7.0  # Karras et al. 2022, appendix D.1


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


@runtime_checkable
class Schedule(Movable, Protocol):
    """The noise levels of a process, for training, sampling and bounds.

    start_std: the standard deviation of the noise that sampling starts from. path: how x_t moves from x_0 to eps, see
    `diffpipe.diffusion.process.Path`.
    """

    @property
    def start_std(self) -> float: ...

    @property
    def path(self) -> Path: ...

    def to(self, device: torch.device | str, /) -> Schedule: ...

    def draw_uniform(self, words: Int[Tensor, " b"]) -> NoiseLevel:
        """Levels uniform in the schedule's own time, from uniform 32-bit words."""
        ...

    def draw_log_ratio(self, log_ratio: Float64[Tensor, " b"]) -> NoiseLevel:
        """Levels whose log(sigma / alpha) is as given, or the nearest that there are."""
        ...

    def position(self, level: NoiseLevel) -> Float64[Tensor, " b"]:
        """Where a level lies between the least noise (0) and the most (1), in the schedule's own time."""
        ...

    def levels(self, steps: int, spacing: Spacing = "trailing") -> list[NoiseLevel]:
        """The levels that a sampler with so many steps visits, from most noise to least; x_0 is not among them.

        Raises UserError for a spacing or a number of steps that the schedule does not have.
        """
        ...

    def at_ratio(self, ratio: float) -> NoiseLevel:
        """The level at which sigma / alpha is `ratio`."""
        ...

    def chain(self) -> NoiseLevel:
        """The levels of the Markov chain whose likelihood is bounded: tensors [K], from least noise to most."""
        ...


class DiscreteScheduleConfig(Config):
    """The noise schedule of a diffusion with timesteps."""

    kind: Literal["linear", "scaled_linear", "cosine", "sigmoid"] = "linear"
    """linear: betas of Ho et al. 2020, section 4. scaled_linear: their roots are linear (Rombach et al. 2022). cosine:
    Nichol & Dhariwal 2021, eq. 17, which suits small images. sigmoid: Jabri et al. 2022, with tau 1."""
    steps: int = Field(default=1000, ge=2, le=1_000_000)
    """T: the number of timesteps."""
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """The variance that the first of 1000 timesteps adds, for linear and scaled_linear. With T timesteps it is
    1000/T times that, so that the noise at the end does not depend on T."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """The variance that the last of 1000 timesteps adds, for linear and scaled_linear. With T timesteps it is 1000/T
    times that, but at most 0.999."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that no signal is left at the last timestep (Lin et al. 2023, algorithm 1). There a
    network that predicts eps has nothing to say: it needs stage.prediction=v or x0."""

    @model_validator(mode="after")
    def _noise_grows(self) -> DiscreteScheduleConfig:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start is {self.beta_start}, above beta_end {self.beta_end}; noise must grow with t")
        return self

    @property
    def betas(self) -> tuple[float, float]:
        """The first and the last beta of a linear schedule."""
        return min(1000 / self.steps * self.beta_start, _MAX_BETA), min(1000 / self.steps * self.beta_end, _MAX_BETA)

    def build(self, device: torch.device | str = "cpu") -> DiscreteSchedule:
        """The tables. Raises UserError where signal is left at the end, since sampling starts from pure noise."""
        schedule = DiscreteSchedule.build(self, device)
        signal = schedule.log_alpha_bar[-1].exp().item()
        if signal > _MAX_SIGNAL:
            raise UserError(
                f"stage.schedule leaves {signal:.2%} of the image's variance in x_T, and sampling starts from pure "
                f"noise; raise beta_end, or set zero_terminal_snr=true"
            )
        return schedule


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """The tables of a variance-preserving schedule: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    1 - alpha_bar_t / alpha_bar_s loses three digits of seven in float32, and a vector of b numbers costs nothing.

    betas: float64 [T], the variance that each step adds.
    log_alpha_bar: float64 [T + 1], of x_0 (which is 0), then of timesteps 0 to T - 1. The last may be -inf.
    """

    betas: Float64[Tensor, " T"]
    log_alpha_bar: Float64[Tensor, " T+1"]

    start_std = 1.0

    @property
    def path(self) -> Path:
        return "preserving"

    @classmethod
    def build(cls, config: DiscreteScheduleConfig, device: torch.device | str = "cpu") -> DiscreteSchedule:
        """The schedule of a config, whatever signal it leaves at the end."""
        T, (start, end) = config.steps, config.betas  # noqa: N806
        match config.kind:
            case "linear":
                betas = torch.linspace(start, end, T, dtype=torch.float64)
            case "scaled_linear":
                betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64).square()
            case "cosine":
                time = torch.arange(T + 1, dtype=torch.float64) / T
                alpha_bar = torch.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
                betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)
            case "sigmoid":
                # alpha_bar falls from 1 to 0 as sigmoid(-x) does on -3 … 3 (Jabri et al. 2022, algorithm 1).
                falling = torch.sigmoid(-torch.linspace(-3, 3, T + 1, dtype=torch.float64))
                alpha_bar = (falling - falling[-1]) / (falling[0] - falling[-1])
                betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=_MAX_BETA)
        log_alpha_bar = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])
        if config.zero_terminal_snr:
            root = (0.5 * log_alpha_bar[1:]).exp()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            log_alpha_bar = torch.cat([betas.new_zeros(1), 2 * root.log()])
            betas = -log_alpha_bar.diff().expm1()
        return cls(betas, log_alpha_bar).to(device)

    @property
    def T(self) -> int:  # noqa: N802 - the field's name for it
        return len(self.betas)

    def to(self, device: torch.device | str) -> DiscreteSchedule:
        return replace(self, betas=self.betas.to(device), log_alpha_bar=self.log_alpha_bar.to(device))

    def alpha_bar(self, t: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The factor on x_0's variance in x_t, for t in -1 … T - 1. It is 1 at t = -1."""
        return self.log_alpha_bar[t + 1].exp()

    def one_minus_alpha_bar(self, t: Int[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The variance of the noise in x_t, precise also where alpha_bar is close to 1. It is 0 at t = -1."""
        return -self.log_alpha_bar[t + 1].expm1()

    def level(self, t: Int[Tensor, " b"]) -> NoiseLevel:
        """The noise level of each timestep in -1 … T - 1."""
        return NoiseLevel(self.alpha_bar(t).sqrt(), self.one_minus_alpha_bar(t).sqrt(), t)

    def draw_uniform(self, words: Int[Tensor, " b"]) -> NoiseLevel:
        return self.level((words * self.T) >> 32)

    def draw_log_ratio(self, log_ratio: Float64[Tensor, " b"]) -> NoiseLevel:
        """The nearest timestep's."""
        between = (self._log_ratios[1:] + self._log_ratios[:-1]) / 2
        return self.level(torch.searchsorted(between, log_ratio))

    def position(self, level: NoiseLevel) -> Float64[Tensor, " b"]:
        return level.time.double() / self.T

    def levels(self, steps: int, spacing: Spacing = "trailing") -> list[NoiseLevel]:
        if spacing in ("trailing", "leading", "linspace"):
            table = self.level(torch.tensor(self.timesteps(steps, spacing)))
            return [NoiseLevel(*values) for values in zip(*(column.tolist() for column in table), strict=True)]
        self._check(steps)
        most, least = (self._log_ratios[i].exp().item() for i in (-1, 0))
        if math.isinf(most):
            raise UserError(
                f"stage.sampler.spacing={spacing} starts at a finite noise level, and zero_terminal_snr ends without "
                f"signal; use trailing"
            )
        return [self.at_ratio(ratio) for ratio in spaced_ratios(most, least, steps, spacing)]

    def at_ratio(self, ratio: float) -> NoiseLevel:
        """Its time lies between timesteps: interpolated in log(sigma / alpha)."""
        time = float(np.interp(math.log(ratio), self._log_ratios.numpy(), np.arange(self.T)))
        return NoiseLevel(1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio), time)

    def chain(self) -> NoiseLevel:
        """All timesteps, as in Ho et al. 2020."""
        return self.level(torch.arange(self.T, device=self.betas.device))

    @property
    def _log_ratios(self) -> Float64[Tensor, " T"]:
        log_alpha_bar = self.log_alpha_bar[1:]
        return 0.5 * ((-log_alpha_bar.expm1()).log() - log_alpha_bar)

    def timesteps(self, steps: int, spacing: Spacing = "trailing") -> list[int]:
        """The timesteps that a sampler with this many steps visits, descending (Lin et al. 2023, table 2).

        "trailing" and "linspace" start from T - 1, where x_t is the noise that samplers start from. "leading" starts
        at T - T / steps, which for few steps has much signal, and for 1 step is the least noise.
        Raises UserError where there are more steps than timesteps.
        """
        self._check(steps)
        match spacing:
            case "leading":
                timesteps = np.arange(steps)[::-1] * (self.T // steps)
            case "linspace":  # numpy's one point of 0 to T - 1 is 0, and sampling starts at T - 1
                timesteps = np.linspace(0, self.T - 1, steps)[::-1].round() if steps > 1 else [self.T - 1]
            case _:  # trailing; arange's float steps can add one entry, near 0
                timesteps = np.arange(self.T, 0, -self.T / steps)[:steps].round() - 1
        return [int(t) for t in timesteps]

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= self.T:
            raise UserError(
                f"the sampler's steps are {steps}, but the schedule has {self.T}: ask for 1 to {self.T} steps"
            )


def spaced_ratios(most: float, least: float, steps: int, spacing: Spacing, rho: float = _RHO) -> Sequence[float]:
    """Noise ratios sigma / alpha from `most` down to `least`.

    karras: even in sigma^(1/rho) (Karras et al. 2022, eq. 5). log_snr: even in log sigma.
    """
    if spacing == "log_snr":
        ratios = np.exp(np.linspace(math.log(most), math.log(least), steps))
    else:
        ratios = np.linspace(most ** (1 / rho), least ** (1 / rho), steps) ** rho
    return ratios.tolist()
