"""The likelihood of the probability-flow ODE of any process x_t = alpha x_0 + sigma eps (Song et al. 2021b, eq. 39;
arXiv:2011.13456).

With r = sigma / alpha and z = x_t / sqrt(alpha^2 + sigma^2), whose signal is a = 1 / sqrt(1 + r^2), the flow is

    dz / d log r = a (a z - x_0(z, r)),

where x_0(z, r) is the network's prediction, and the log-density along it falls by the divergence of the right side:

    log p(z) = log p(z_T) + integral of a (a d - tr dx_0/dz) d log r, from the least noise level to the most.

The trace is Hutchinson's estimate: the mean of v . (dx_0/dz) v over random signs v (Grathwohl et al. 2019, eq. 7). It
is unbiased. The solver takes fixed steps, even in log r. Their error can have either sign, and falls with the solver's
order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from diffpipe.diffusion.denoiser import Denoise
from diffpipe.diffusion.process import NoiseLevel, append_dims, q_sample
from diffpipe.diffusion.schedule import Schedule
from diffpipe.diffusion.vlb import decoder, decoder_term
from diffpipe.errors import UserError
from diffpipe.interfaces import Score
from diffpipe.rng import KeyedRNG

Solver = Literal["rk4", "heun"]
SOLVERS: dict[Solver, Sequence[tuple[float, float]]] = {
    "heun": ((0, 1 / 2), (1, 1 / 2)),
    "rk4": ((0, 1 / 6), (1 / 2, 1 / 3), (1 / 2, 1 / 3), (1, 1 / 6)),
}
"""(node, weight) of each stage of a step. A stage starts from the slope of the one before it."""
_MOST = 1e3
"""The largest sigma / alpha. x_0 shifts the density beyond it by less than 1e-6 nats per pixel."""


@dataclass(frozen=True)
class ODESettings:
    """How the flow is solved.

    solver: rk4 (order 4, four evaluations of the network a step) or heun (order 2, two). steps: from the least noise
    level to the most. probes: sign vectors per evaluation, each a backward pass through the network; two or more, whose
    spread is the standard error of the trace. Raises UserError.
    """

    solver: Solver = "rk4"
    steps: int = 50
    probes: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"the ODE's steps are {self.steps}; give 1 or more")
        if self.probes < 2:
            raise UserError(f"probes is {self.probes}; give 2 or more: their spread is the standard error of the trace")


def ode_settings(*, ode: bool, **options: Any) -> ODESettings | None:
    """The settings of these options, those that are None left out; None without ode.

    Raises UserError for a solver or probes without ode.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    if ode:
        return ODESettings(**chosen)
    for name in chosen.keys() & {"solver", "probes"}:
        raise UserError(f"{name} is for the likelihood of the probability flow; give ode too")
    return None


@dataclass(frozen=True, kw_only=True)
class ODEScore(Score):
    """An estimate of the bits/dim, and the variance of each sample's estimate over the probes, in bits/dim squared."""

    probe_variance: Float32[Tensor, " b"]


class FlowDensity(NamedTuple):
    """The log-density of x_t at the least noise level, in nats, as two terms.

    prior: float64 [b], of the noise that the flow leads to. divergence: float64 [probes b], an estimate for each probe.
    """

    prior: Float64[Tensor, " b"]
    divergence: Float64[Tensor, "probes b"]


def ode_likelihood(
    denoise: Denoise, schedule: Schedule, x0: Float[Tensor, " b *shape"], rng: KeyedRNG, settings: ODESettings
) -> ODEScore:
    """The negative log-likelihood of x_0 in [-1, 1] on the grid of 256 levels.

    The flow ends at the least noise level, x_1, and the variational bound's decoder p(x_0 | x_1) leads from there to
    the grid. -log p(x_0) is at most the mean of

        -log p(x_1) + log q(x_1 | x_0) - log p(x_0 | x_1)

    over x_1 ~ q(x_1 | x_0), so that noise is the dequantization (Zheng et al. 2023, section 4.2). The bound of `vlb`
    has the same last term, under the same noise, and the chain's bound in place of the flow's density.

    denoise: gets float64. schedule: on the CPU. All is float64, and the score float32. Each sample has its own noise
    and probes, keyed by its position ("bound noise", "ode probe").
    """
    chain = NoiseLevel(*(torch.as_tensor(column, device=x0.device) for column in schedule.chain()))
    first = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
    level = NoiseLevel(*(column[first] for column in chain))
    eps = rng.normal("bound noise", x0.shape[1:]).double()
    x_1 = q_sample(level, x0.double(), eps)
    density = log_density(denoise, schedule, x_1, rng, settings)
    log_normal = -0.5 * eps.square() - append_dims(level.sigma.log(), eps) - 0.5 * math.log(2 * math.pi)
    to_bits = 1 / (math.prod(x0.shape[1:]) * math.log(2))
    terms = {
        "prior": -to_bits * density.prior,
        "divergence": -to_bits * density.divergence.mean(0),
        "dequantization": to_bits * _total(log_normal),
        "L_0": to_bits * decoder_term(x0, decoder(chain, first, denoise(x_1, level))),
    }
    return ODEScore(
        per_sample=torch.stack(list(terms.values())).sum(0).float(),
        unit="bits/dim",
        kind="estimate",
        terms={name: term.float() for name, term in terms.items()},
        probe_variance=((to_bits * density.divergence).var(0) / settings.probes).float(),
    )


@torch.no_grad()
def log_density(
    denoise: Denoise, schedule: Schedule, x: Float[Tensor, " b *shape"], rng: KeyedRNG, settings: ODESettings
) -> FlowDensity:
    """log p(x) of x_t at the least noise level of the schedule's chain, float64.

    Each evaluation of the network has probes of its own: their errors average out along the flow.
    """
    log_ratios, first, last = _grid(schedule, settings.steps)
    dims = math.prod(x.shape[1:])
    z = x.double() / _norm(first)
    divergence = torch.full((settings.probes, len(x)), -dims * math.log(_norm(first)), dtype=torch.float64).to(x.device)
    evaluation = 0
    for low, high in pairwise(log_ratios):
        width, slope, z_next = high - low, torch.zeros_like(z), z
        for node, weight in SOLVERS[settings.solver]:
            level = schedule.at_ratio(math.exp(low + node * width))
            signs = [_signs(rng, x.shape[1:], evaluation * settings.probes + k) for k in range(settings.probes)]
            slope, rate = _flow(denoise, level, z + node * width * slope, signs)
            z_next, divergence = z_next + weight * width * slope, divergence + weight * width * rate
            evaluation += 1
        z = z_next
    variance = (_start_std(schedule, last) / _norm(last)) ** 2
    return FlowDensity(_total(-0.5 * z.square() / variance - 0.5 * math.log(2 * math.pi * variance)), divergence)


def _flow(
    denoise: Denoise, level: NoiseLevel, z: Float64[Tensor, " b *shape"], signs: Sequence[Tensor]
) -> tuple[Float64[Tensor, " b *shape"], Float64[Tensor, "probes b"]]:
    """dz / d log r, and its divergence with each probe."""
    a, dims = level.alpha / _norm(level), math.prod(z.shape[1:])
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x0 = denoise(_norm(level) * z, level).x0.double()
    traces = []
    for v in signs:
        (gradient,) = torch.autograd.grad(x0, z, v, retain_graph=v is not signs[-1])
        traces.append(_total(gradient * v))
    return a * (a * z.detach() - x0.detach()), a * (a * dims - torch.stack(traces))


def _grid(schedule: Schedule, steps: int) -> tuple[list[float], NoiseLevel, NoiseLevel]:
    """log(sigma / alpha) at the ends of all steps, from least noise to most, and the first and the last level."""
    ratio = schedule.chain().ratio
    least, most = float(ratio[0]), min(float(ratio[-1]), _MOST)
    log_ratios = torch.linspace(math.log(least), math.log(most), steps + 1, dtype=torch.float64).tolist()
    return log_ratios, schedule.at_ratio(least), schedule.at_ratio(most)


def _start_std(schedule: Schedule, last: NoiseLevel) -> float:
    """The standard deviation of the noise that sampling starts from, where it passes the level `last`."""
    return schedule.start_std * last.sigma / schedule.levels(1)[0].sigma


def _norm(level: NoiseLevel) -> float:
    """sqrt(alpha^2 + sigma^2)."""
    return math.hypot(level.alpha, level.sigma)


def _signs(rng: KeyedRNG, shape: Sequence[int], stream: int) -> Float64[Tensor, " b *shape"]:
    """Independent signs, +1 or -1 (Rademacher)."""
    words = rng.bits("ode probe", math.prod(shape), stream).reshape(-1, *shape)
    return 1 - 2 * (words & 1).double()


def _total(x: Float64[Tensor, " b *shape"]) -> Float64[Tensor, " b"]:
    return reduce(x, "b ... -> b", "sum")
