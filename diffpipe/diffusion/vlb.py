"""The variational bound on -log p(x_0) of a diffusion, term by term: Ho et al. 2020, eqs. 5 to 8 and 13.

The bound is that of the ancestral sampler over all timesteps: p(x_{t-1} | x_t) has the mean of q(x_{t-1} | x_t, x_0) at
the predicted x_0, and a fixed variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diffpipe.diffusion.process import (
    IsotropicGaussian,
    append_dims,
    posterior,
    posterior_variance,
    predict_x0,
    q_sample,
)
from diffpipe.diffusion.samplers import EpsModel
from diffpipe.diffusion.schedule import Schedule
from diffpipe.errors import UserError
from diffpipe.interfaces import Score
from diffpipe.rng import KeyedRNG

Variance = Literal["small", "large"]


@dataclass(frozen=True, kw_only=True)
class VLBScore(Score):
    """The bound in bits/dim, with its terms L_T, L_t (the sum of all terms between) and L_0, and its terms by timestep.

    by_timestep: float32 [b k]. Column j is the sum of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) over the timesteps
    t of strata[j], estimated from one of them where the stratum has several.
    """

    by_timestep: Float32[Tensor, "b k"]
    strata: Sequence[range]


def variational_lower_bound(
    eps_model: EpsModel,
    schedule: Schedule,
    x0: Float[Tensor, " b *shape"],
    rng: KeyedRNG,
    *,
    clip: bool,
    variance: Variance,
    evaluations: int | None = None,
) -> VLBScore:
    """The bound for x_0 in [-1, 1] on the grid of 256 levels, given `eps_model(x_t, t) -> eps_hat`.

    clip, variance: as in the sampler. evaluations: of the network per image, see `timestep_strata`; None: one at every
    timestep. Each sample has its own timesteps and noise, keyed by its position ("bound timestep", "bound noise"). The
    network gets float32. All else is float64, and the score float32. Raises UserError for a number that does not fit.
    """
    strata = timestep_strata(schedule.T, evaluations)

    def noised(stratum: range, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        t = stratum.start + rng.integers("bound timestep", len(stratum), stream)
        x_t = q_sample(schedule, x0, t, rng.normal("bound noise", x0.shape[1:], stream))
        x0_hat = predict_x0(schedule, x_t.double(), t, eps_model(x_t, t).double())
        return t, x_t.double(), x0_hat.clamp(-1, 1) if clip else x0_hat

    first, _, x0_hat = noised(range(1), stream=0)
    # The posterior has no variance here; its next one makes the better decoder, whichever `variance` is.
    decoder = decoder_term(x0, IsotropicGaussian(x0_hat, posterior_variance(schedule, first + 1, first)))
    between = []
    for stream, stratum in enumerate(strata, start=1):
        t, x_t, x0_hat = noised(stratum, stream)
        q, p = (posterior(schedule, x.double(), x_t, t, t - 1) for x in (x0, x0_hat))
        p = IsotropicGaussian(p.mean, schedule.beta(t, t - 1)) if variance == "large" else p
        between.append(len(stratum) * gaussian_kl(q, p))
    to_bits = 1 / (math.prod(x0.shape[1:]) * math.log(2))
    by_timestep = to_bits * torch.stack(between, dim=1)
    terms = {"L_T": to_bits * prior_term(schedule, x0), "L_t": by_timestep.sum(1), "L_0": to_bits * decoder}
    return VLBScore(
        per_sample=torch.stack(list(terms.values())).sum(0).float(),
        unit="bits/dim",
        kind="bound",
        terms={name: term.float() for name, term in terms.items()},
        by_timestep=by_timestep.float(),
        strata=strata,
    )


def timestep_strata(T: int, evaluations: int | None = None) -> list[range]:  # noqa: N803 - the field's name for it
    """Timesteps 1 to T - 1, cut into evaluations - 1 strata that grow in proportion to t. Timestep 0 belongs to L_0.

    One timestep is drawn uniformly from each stratum and stands for all of it, so the sum is unbiased. The terms fall
    off like a power of t: with strata of equal length the first would have most of the variance. Raises UserError for
    fewer than 2 evaluations or more than T.
    """
    runs = T - 1 if evaluations is None else evaluations - 1
    if not 1 <= runs < T:
        raise UserError(f"the bound's steps are {evaluations}, but the schedule has {T}: ask for 2 to {T} steps")
    edges = [max(1 + i, int(T ** (i / runs))) for i in range(runs + 1)]
    return [range(*edge) for edge in pairwise(edges)]


def prior_term(schedule: Schedule, x0: Float[Tensor, " b *shape"]) -> Float64[Tensor, " b"]:
    """L_T: KL(q(x_T | x_0) || N(0, I)), in nats."""
    last = torch.full((len(x0),), schedule.T - 1, device=x0.device)
    mean = append_dims(schedule.alpha_bar(last).sqrt(), x0.double()) * x0.double()
    variance = schedule.one_minus_alpha_bar(last)
    return gaussian_kl(
        IsotropicGaussian(mean, variance), IsotropicGaussian(torch.zeros_like(mean), torch.ones_like(variance))
    )


def gaussian_kl(q: IsotropicGaussian, p: IsotropicGaussian) -> Float64[Tensor, " b"]:
    """KL(q || p) in nats, over all pixels of a sample."""
    dims = math.prod(q.mean.shape[1:])
    ratio = q.variance.double() / p.variance.double()
    distance = reduce((q.mean.double() - p.mean.double()).square(), "b ... -> b", "sum")
    return 0.5 * (distance / p.variance.double() + dims * (ratio - 1 - ratio.log()))


def decoder_term(x0: Float[Tensor, " b *shape"], p: IsotropicGaussian) -> Float64[Tensor, " b"]:
    """L_0: -log p(x_0 | x_1) in nats, where p is cut into 256 bins (Ho et al. 2020, eq. 13).

    Level i of 0 … 255 lies at 2 i / 255 - 1 and its bin reaches half a level to both sides; the outermost two reach to
    infinity, so that the bins' probabilities sum to 1.
    """
    level = ((x0.double() + 1) * 127.5).round()
    std = append_dims(p.variance.double().sqrt(), p.mean.double())

    def standardized(edge: Tensor) -> Tensor:
        return (edge / 127.5 - 1 - p.mean.double()) / std

    below = standardized(level - 0.5).masked_fill(level == 0, -torch.inf)
    above = standardized(level + 0.5).masked_fill(level == 255, torch.inf)
    # Far from the mean only the lower tail has digits left, so bins above the mean are mirrored into it.
    mirrored = standardized(level) > 0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    at_most = torch.special.log_ndtr(above)
    log_prob = at_most + torch.log(-torch.expm1(torch.special.log_ndtr(below) - at_most))
    return -reduce(log_prob, "b ... -> b", "sum")
