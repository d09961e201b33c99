"""The training pairs and the loss of an epsilon-prediction network."""

from __future__ import annotations

from typing import NamedTuple

from einops import reduce
from jaxtyping import Float, Float32, Int
from torch import Tensor

from diffpipe.diffusion.process import q_sample
from diffpipe.diffusion.schedule import Schedule
from diffpipe.rng import KeyedRNG


class TrainingPair(NamedTuple):
    """The network's inputs x_t, float [b, *shape], and t, int64 [b], and its target eps, float [b, *shape]."""

    x_t: Float[Tensor, " b *shape"]
    t: Int[Tensor, " b"]
    eps: Float[Tensor, " b *shape"]


def training_pair(schedule: Schedule, x0: Float[Tensor, " b *shape"], rng: KeyedRNG) -> TrainingPair:
    """Draw t uniformly and eps from the standard normal, and noise x0 (lines 3 to 5 of Ho et al. 2020, algorithm 1).

    The random numbers of a sample depend on its position alone ("timestep", "noise"). `rng` and `x0` share a device.
    """
    t = rng.integers("timestep", schedule.T)
    eps = rng.normal("noise", x0.shape[1:])
    return TrainingPair(q_sample(schedule, x0, t, eps), t, eps)


def simple_loss(eps: Float[Tensor, " b *shape"], eps_hat: Float[Tensor, " b *shape"]) -> Float32[Tensor, " b"]:
    """The mean over pixels of (eps - eps_hat)^2 for each sample, float32 (Ho et al. 2020, eq. 14)."""
    return reduce((eps.float() - eps_hat.float()).square(), "b ... -> b", "mean")
