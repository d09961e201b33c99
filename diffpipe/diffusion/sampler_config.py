"""The settings of a sampler, and the noise levels that it steps through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from diffpipe import plugins
from diffpipe.config import Config
from diffpipe.config.kinds import Names
from diffpipe.diffusion.denoiser import Denoise
from diffpipe.diffusion.process import CLEAN, NoiseLevel
from diffpipe.diffusion.schedule import Schedule, Spacing

Noise = Callable[[int], Tensor]
Sampler = Callable[[Denoise, Schedule, Tensor, "SamplerConfig", Noise], Tensor]

SAMPLERS = tuple(sorted(plugins.BUILT_IN["samplers"]))
"""The names of diffpipe's own samplers. Each is a function of this name in samplers.py or solvers.py."""


class SamplerConfig(Config):
    """How images are drawn."""

    kind: Annotated[str, Names("samplers", SAMPLERS)] = "ddim"
    """The sampler: ancestral (Ho et al. 2020, algorithm 2), ddim (Song et al. 2021), euler (ddim without noise), heun
    and edm (Karras et al. 2022, algorithms 1 and 2), dpmpp_2m and dpmpp_2m_sde (Lu et al. 2022b), unipc (Zhao et al.
    2023). The last three are best at 10 to 20 steps."""
    steps: int = Field(default=50, ge=1)
    """Steps from noise to image, at most the schedule's timesteps. Each is one network evaluation; two for heun and
    edm, but the last. With a schedule of timesteps these two take their steps in atan(sigma / alpha)."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """The noise of ddim, from 0 (none) to 1 (as much as the ancestral sampler's)."""
    spacing: Spacing = "trailing"
    """Which noise levels are visited. trailing: evenly in the schedule's own time, from its end, where x_t is the noise
    that sampling starts from. leading and linspace: other choices of timesteps (Lin et al. 2023, table 2); leading
    starts at T - T/steps, so take many steps. karras: even in sigma^(1/7) (Karras et al. 2022, eq. 5). log_snr: even in
    log sigma."""
    clip: bool = True
    """Clip each predicted x_0 to [-1, 1]. Off for latents, which have no such range."""
    dynamic_threshold: float | None = Field(default=None, gt=0, lt=1)
    """Instead, clip each predicted x_0 to its own quantile of this order, such as 0.995, and scale it back into [-1, 1]
    (Saharia et al. 2022): for large guidance. null: off."""
    variance: Literal["small", "large"] = "small"
    """The ancestral sampler's variance: small is the posterior's, large is beta (Ho et al. 2020, section 3.2). A
    learned variance takes its place."""
    churn: float = Field(default=0.0, ge=0)
    """edm: S_churn, the amount of noise that is added over all steps, such as 40. 0: none, which is heun."""
    churn_min: float = Field(default=0.0, ge=0)
    """edm: S_min, the least sigma at which noise is added."""
    churn_max: float | None = Field(default=None, gt=0)
    """edm: S_max, the largest sigma at which noise is added; null: none."""
    churn_noise: float = Field(default=1.0, gt=0)
    """edm: S_noise, the standard deviation of the added noise, such as 1.003."""


def steps(schedule: Schedule, config: SamplerConfig) -> Iterator[tuple[int, NoiseLevel, NoiseLevel]]:
    """The number of each step, and the levels that it leads from and to."""
    levels = [*schedule.levels(config.steps, config.spacing), CLEAN]
    for i, (level, lower) in enumerate(pairwise(levels)):
        yield i, level, lower
