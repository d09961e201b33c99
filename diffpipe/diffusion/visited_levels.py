"""The noise levels at which a sampler evaluates its network."""

from __future__ import annotations

import torch
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoised
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.diffusion.samplers import find
from diffpipe.diffusion.schedule import Schedule


def visited_levels(schedule: Schedule, config: SamplerConfig) -> list[NoiseLevel]:
    """The noise level of each evaluation of the network, in order. schedule: on the CPU."""
    levels: list[NoiseLevel] = []

    def noted(x: Tensor, level: NoiseLevel) -> Denoised:
        levels.append(level)
        return Denoised(x)

    zero = torch.zeros(1, 1)
    find(config.kind)(noted, schedule, zero, config, lambda _: zero)
    return levels
