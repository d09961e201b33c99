"""Which noise level each training sample gets."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from diffpipe.config import Config
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import Schedule
from diffpipe.rng import KeyedRNG, fold_in, inverse_normal_cdf

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed integer
_DEFAULTS = {"edm": (-1.2, 1.2), "flow": (0.0, 1.0)}  # Karras et al. 2022, table 1; Esser et al. 2024, table 1


class TimestepsConfig(Config):
    """How the noise levels of training are drawn."""

    kind: Literal["uniform", "log_normal"] | None = None
    """uniform in the schedule's own time; log_normal: log(sigma/alpha) is normal, which is EDM's draw of sigma and, for
    flow, the logit-normal t of Esser et al. 2024. null: uniform with timesteps, log_normal for edm and flow."""
    mean: float | None = None
    """Mean of log(sigma/alpha) for log_normal. null: -1.2 for edm (Karras et al. 2022), else 0."""
    std: float | None = Field(default=None, gt=0)
    """Standard deviation of log(sigma/alpha) for log_normal. null: 1.2 for edm, else 1."""
    low_discrepancy: bool = False
    """Spread the draws of neighbouring positions evenly (a Kronecker sequence by the golden ratio), so that each batch
    covers all noise levels, whatever its size."""


def draw_level(schedule: Schedule, config: TimestepsConfig, kind: str, rng: KeyedRNG) -> NoiseLevel:
    """A noise level for each sample, which depends on its position alone ("timestep").

    kind: the schedule's.
    """
    words = _golden_words(rng) if config.low_discrepancy else rng.bits("timestep", 1)[:, 0]
    default = "log_normal" if kind in _DEFAULTS else "uniform"
    if (config.kind or default) == "uniform":
        return schedule.draw_uniform(words)
    mean, std = _DEFAULTS.get(kind, (0.0, 1.0))
    mean = mean if config.mean is None else config.mean
    std = std if config.std is None else config.std
    return schedule.draw_log_ratio(mean + std * inverse_normal_cdf(words).double())


def _golden_words(rng: KeyedRNG) -> Int[Tensor, " b"]:
    """Uniform 32-bit words: the fractional part of position / golden ratio + a shift by the seed.

    Any n consecutive positions have a discrepancy of O(log n / n) (Niederreiter 1992, theorem 3.3). int64 wraps around,
    which is the fractional part.
    """
    return ((rng.positions * _GOLDEN + fold_in(rng.seed, "timestep")) >> 32) & 0xFFFFFFFF
