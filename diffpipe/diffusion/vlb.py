"""The variational bound on -log p(x_0) of a diffusion, term by term: Ho et al. 2020, eqs. 5 to 8 and 13.

The bound is that of the ancestral sampler over all levels of the schedule's chain: p(x_{t-1} | x_t) has the mean of
q(x_{t-1} | x_t, x_0) at the predicted x_0, and a fixed or learned variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoise, Denoised
from diffpipe.diffusion.process import (
    CLEAN,
    Gaussian,
    NoiseLevel,
    append_dims,
    learned_variance,
    posterior,
    posterior_variance,
    q_sample,
    step_variance,
)
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
    denoise: Denoise,
    schedule: Schedule,
    x0: Float[Tensor, " b *shape"],
    rng: KeyedRNG,
    *,
    variance: Variance,
    evaluations: int | None = None,
    steps: int | None = None,
) -> VLBScore:
    """The bound for x_0 in [-1, 1] on the grid of 256 levels.

    denoise: gets float64. variance: as in the sampler. evaluations: of the network per image, see `timestep_strata`;
    None: one at every level of the chain. steps: of the chain, see `strided_chain`. Each sample has its own timesteps
    and noise, keyed by its position ("bound timestep", "bound noise"). All is float64, and the score float32. Raises
    UserError for a number that does not fit.
    """
    chain = strided_chain(schedule, steps, x0.device)
    strata = timestep_strata(len(chain.time), evaluations)

    def noised(stratum: range, stream: int) -> tuple[Tensor, Tensor, Denoised]:
        t = stratum.start + rng.integers("bound timestep", len(stratum), stream)
        x_t = q_sample(_at(chain, t), x0, rng.normal("bound noise", x0.shape[1:], stream)).double()
        return t, x_t, denoise(x_t, _at(chain, t))

    first, _, denoised = noised(range(1), stream=0)
    reconstruction = decoder_term(x0, decoder(chain, first, denoised))
    between = []
    for stream, stratum in enumerate(strata, start=1):
        t, x_t, denoised = noised(stratum, stream)
        between.append(len(stratum) * posterior_term(_at(chain, t), _at(chain, t - 1), x0, x_t, denoised, variance))
    to_bits = 1 / (math.prod(x0.shape[1:]) * math.log(2))
    by_timestep = to_bits * torch.stack(between, dim=1)
    prior = prior_term(NoiseLevel(*(column[-1:] for column in chain)), schedule.start_std, x0)
    terms = {"L_T": to_bits * prior, "L_t": by_timestep.sum(1), "L_0": to_bits * reconstruction}
    return VLBScore(
        per_sample=torch.stack(list(terms.values())).sum(0).float(),
        unit="bits/dim",
        kind="bound",
        terms={name: term.float() for name, term in terms.items()},
        by_timestep=by_timestep.float(),
        strata=strata,
    )


def _at(chain: NoiseLevel, t: Int[Tensor, " b"]) -> NoiseLevel:
    return NoiseLevel(*(column[t] for column in chain))


def decoder(chain: NoiseLevel, first: Int[Tensor, " b"], denoised: Denoised) -> Gaussian:
    """p(x_0 | x_1). The posterior has no variance there; its next one makes the better decoder.

    In the first timesteps that is about half of (sigma / alpha)^2, the variance of the noise. Levels that are no
    timesteps lie much closer, and have half of it, too: the decoder would be far too sure.
    """
    if chain.time.is_floating_point():
        return Gaussian(denoised.x0, _at(chain, first).ratio ** 2 / 2)
    least = posterior_variance(_at(chain, first + 1), _at(chain, first))
    if denoised.variance_share is None:
        return Gaussian(denoised.x0, least)
    return Gaussian(denoised.x0, learned_variance(_at(chain, first), CLEAN, denoised.variance_share.double(), least))


def posterior_term(
    level: NoiseLevel,
    lower: NoiseLevel,
    x0: Float[Tensor, " b *shape"],
    x_t: Float[Tensor, " b *shape"],
    denoised: Denoised,
    variance: Variance,
) -> Float64[Tensor, " b"]:
    """L_{t-1}: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), in nats."""
    q = posterior(level, lower, x0.double(), x_t.double())
    return gaussian_kl(q, reverse_distribution(level, lower, x_t, denoised, variance))


def reverse_distribution(
    level: NoiseLevel, lower: NoiseLevel, x_t: Float[Tensor, " b *shape"], denoised: Denoised, variance: Variance
) -> Gaussian:
    """p(x_s | x_t) for t at `level` and s at a lower one, in float64."""
    p = posterior(level, lower, denoised.x0.double(), x_t.double())
    if denoised.variance_share is not None:
        return Gaussian(p.mean, learned_variance(level, lower, denoised.variance_share.double()))
    return Gaussian(p.mean, step_variance(level, lower)) if variance == "large" else p


def hybrid_term(
    schedule: Schedule, level: NoiseLevel, x0: Tensor, x_t: Tensor, denoised: Denoised
) -> Float32[Tensor, " b"]:
    """The term of the bound at each sample's timestep, in bits/dim, times T / 1000, through the variance alone.

    It is L_vlb of the hybrid loss with its factor 0.001 (Nichol & Dhariwal 2021, eq. 16): the predicted x_0 gets no
    gradient from it.
    """
    chain, t = schedule.chain(), level.time
    fixed = Denoised(denoised.x0.detach().double(), denoised.variance_share)
    reconstruction = decoder_term(x0, decoder(chain, torch.zeros_like(t), fixed))
    # Timestep 0 has no lower one: its posterior term is computed at timestep 1 and left out.
    between = posterior_term(_at(chain, t.clamp(min=1)), _at(chain, (t - 1).clamp(min=0)), x0, x_t, fixed, "small")
    nats = torch.where(t == 0, reconstruction, between)
    return (nats * len(chain.time) / (1000 * math.prod(x0.shape[1:]) * math.log(2))).float()


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


def strided_chain(schedule: Schedule, steps: int | None, device: torch.device) -> NoiseLevel:
    """The levels of the schedule's chain on a device. steps: the number of levels that are left; None: all.

    Left are the least and the most noise, and between them the last timestep of each stratum. A network needs no new
    training for that chain (Nichol & Dhariwal 2021, section 4). Most of the bound lies at the lowest timesteps: even
    distances, as in the paper, cost several bits/dim at 50 steps. Levels that are no timesteps are even in log(sigma /
    alpha), and so are those left of them. Raises UserError for fewer than 2 steps or more than there are.
    """
    chain = NoiseLevel(*(torch.as_tensor(column, device=device) for column in schedule.chain()))
    if steps is None:
        return chain
    strata = timestep_strata(len(chain.time), steps)
    if chain.time.is_floating_point():
        left = torch.linspace(0, strata[-1][-1], steps, dtype=torch.float64).round().long()
    else:
        left = torch.tensor([0, *(stratum[-1] for stratum in strata)])
    return _at(chain, left.to(device))


def prior_term(last: NoiseLevel, start_std: float, x0: Float[Tensor, " b *shape"]) -> Float64[Tensor, " b"]:
    """L_T: KL(q(x_T | x_0) || N(0, start_std^2 I)), in nats. last: the level with the most noise, [1] or [b]."""
    mean = append_dims(last.alpha, x0.double()) * x0.double()
    variance = torch.as_tensor(last.sigma**2, device=x0.device).expand(len(x0))
    return gaussian_kl(
        Gaussian(mean, variance), Gaussian(torch.zeros_like(mean), torch.full_like(variance, start_std**2))
    )


def gaussian_kl(q: Gaussian, p: Gaussian) -> Float64[Tensor, " b"]:
    """KL(q || p) in nats, over all pixels of a sample."""
    of_q, of_p = (per_pixel(gaussian) for gaussian in (q, p))
    ratio = of_q / of_p
    distance = (q.mean.double() - p.mean.double()).square() / of_p
    return 0.5 * reduce(distance + ratio - 1 - ratio.log(), "b ... -> b", "sum")


def per_pixel(gaussian: Gaussian) -> Float64[Tensor, "*shape"]:
    """The variance in a shape that broadcasts to the mean's."""
    variance = torch.as_tensor(gaussian.variance, dtype=torch.float64, device=gaussian.mean.device)
    return append_dims(variance, gaussian.mean.double()) if variance.ndim == 1 else variance


def decoder_term(x0: Float[Tensor, " b *shape"], p: Gaussian) -> Float64[Tensor, " b"]:
    """L_0: -log p(x_0 | x_1) in nats, where p is cut into 256 bins (Ho et al. 2020, eq. 13)."""
    level = ((x0.double() + 1) * 127.5).round()
    return -reduce(level_log_prob(level, p.mean.double(), per_pixel(p).sqrt()), "b ... -> b", "sum")


def level_log_prob(
    level: Float64[Tensor, "*#shape"], mean: Float64[Tensor, "*#shape"], std: Float64[Tensor, "*#shape"]
) -> Float64[Tensor, "*shape"]:
    """The log-probability of levels of pixels under normal distributions cut into 256 bins.

    Level i of 0 … 255 lies at 2 i / 255 - 1 and its bin reaches half a level to both sides; the outermost two reach to
    infinity, so that the bins' probabilities sum to 1.
    """

    def standardized(edge: Tensor) -> Tensor:
        return (edge / 127.5 - 1 - mean) / std

    below = standardized(level - 0.5).masked_fill(level == 0, -torch.inf)
    above = standardized(level + 0.5).masked_fill(level == 255, torch.inf)
    # Far from the mean only the lower tail has digits left, so bins above the mean are mirrored into it.
    mirrored = standardized(level) > 0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    at_most = torch.special.log_ndtr(above)
    return at_most + torch.log(-torch.expm1(torch.special.log_ndtr(below) - at_most))
