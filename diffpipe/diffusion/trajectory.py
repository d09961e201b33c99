"""The reverse chain of a sampler: its states, and the x_0 that the network predicts from each."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import count
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.diffusion.denoiser import Denoise, Denoised
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.diffusion.samplers import sample
from diffpipe.diffusion.schedule import Schedule
from diffpipe.diffusion.visited_levels import visited_levels
from diffpipe.rng import RNG

Decode = Callable[[Tensor], Tensor]
"""From x_0 to uint8 images."""
Show = Callable[[NoiseLevel, Tensor, Tensor], None]
"""Takes the level, x_t [b, *shape] and the x_0 predicted from it."""


class ChainState(NamedTuple):
    """Where a chain of noise levels is: x_t, divided by sqrt(alpha^2 + sigma^2), and the x_0 predicted from it.

    ratio: sigma / alpha of x_t: infinite at pure noise, and 0 at the end, where both are the sampled images.
    """

    ratio: float
    x_t: UInt8[Tensor, "b c h w"]
    x0: UInt8[Tensor, "b c h w"]


@runtime_checkable
class HasChain(Protocol):
    """A stage that generates by a chain of noise levels."""

    def trajectory(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None, most: int
    ) -> list[ChainState]:
        """Up to `most` (at least 2) states of the chain, of which the last is what `generate` makes."""
        ...


def sample_states(
    denoise: Denoise,
    schedule: Schedule,
    config: SamplerConfig,
    rng: RNG,
    shape: Sequence[int],
    decode: Decode,
    most: int,
) -> list[ChainState]:
    """Up to `most` states of the chain of `sample`, from pure noise to x_0."""
    states: list[ChainState] = []
    evaluations = chain_evaluations(visited_levels(schedule, config), most - 1)
    x0 = sample(watched(denoise, evaluations, collect(states, decode)), schedule, config, rng, shape)
    return [*states, final_state(decode(x0))]


def collect(states: list[ChainState], decode: Decode) -> Show:
    """Append each state that is shown, as images."""

    def show(level: NoiseLevel, x_t: Tensor, x0: Tensor) -> None:
        scale = math.hypot(level.alpha, level.sigma)
        states.append(ChainState(float(level.ratio), decode(x_t / scale), decode(x0)))

    return show


def final_state(images: Tensor) -> ChainState:
    """The end of a chain: the sampled images themselves."""
    return ChainState(0.0, images, images)


def watched(denoise: Denoise, evaluations: Container[int], show: Show) -> Denoise:
    """The denoiser, which shows what it does at these evaluations, counted from 0."""
    numbers = count()

    def denoise_and_show(x: Tensor, level: NoiseLevel) -> Denoised:
        denoised = denoise(x, level)
        if next(numbers) in evaluations:
            show(level, x, denoised.x0)
        return denoised

    return denoise_and_show


def chain_evaluations(levels: Sequence[NoiseLevel], most: int) -> list[int]:
    """Up to `most` evaluations of a sampler, evenly spread from its first to its last. levels: of each evaluation.

    They are those at states of the chain. A solver such as Heun's also evaluates at a trial point: there the next
    evaluation is at the same level or a higher one.
    """
    last = len(levels) - 1
    chain = [i for i, level in enumerate(levels) if i == last or levels[i + 1].ratio < level.ratio]
    return [chain[i] for i in evenly(len(chain), most)]


def evenly(n: int, most: int) -> list[int]:
    """Up to `most` of 0 to n - 1, ascending, with both ends where it is more than one."""
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, most)).round()})
