"""Data whose diffusion is known in closed form: Gaussians and mixtures of them, with their optimal denoiser as network.

Everything is float64 [b, d] and independent of `diffpipe.diffusion`: what a network should answer is written as in the
papers, so that the conversion of its output is tested too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.denoiser import Denoise, NetworkFunction, denoiser
from diffpipe.diffusion.parameterization import Parameterization, Prediction
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import DiscreteScheduleConfig, Schedule

SIGMA_DATA = 0.5


class Mixture(NamedTuple):
    """A mixture of k Gaussians in d dimensions. weights: [k]. means: [k, d]. covariances: [k, d, d]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        offsets = self.means - self.mean
        between = torch.einsum("k,ki,kj->ij", self.weights, offsets, offsets)
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between

    def x0(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """E[x_0 | x_t], the optimal denoiser."""
        joint, x0 = self._joint(x_t, level)
        return torch.einsum("bk,bki->bi", joint.softmax(1), x0)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of x_0, [n, d]."""
        rng = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        normal = torch.randn(n, self.means.shape[1], generator=rng, dtype=torch.float64)
        return self.means[component] + torch.einsum(
            "bij,bj->bi", torch.linalg.cholesky(self.covariances)[component], normal
        )

    def log_density(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """log p(x_t), [b], in nats."""
        return torch.logsumexp(self._joint(x_t, level)[0], dim=1)

    def flow(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Where the probability flow carries x_t to, at the level of x_0. For a single Gaussian.

        Along the flow each principal component keeps its number of standard deviations from the mean.
        """
        values, vectors = torch.linalg.eigh(self.covariances[0])
        alpha, sigma = _columns(x_t, level)
        z = (x_t - alpha * self.means[0]) @ vectors / (alpha**2 * values + sigma**2).sqrt()
        return self.means[0] + (values.sqrt() * z) @ vectors.T

    def _joint(self, x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """log p(component, x_t), [b, k], and E[x_0 | x_t, component], [b, k, d]."""
        values, vectors = torch.linalg.eigh(self.covariances)
        alpha, sigma = (column[:, None] for column in _columns(x_t, level))
        variance = alpha**2 * values + sigma**2
        y = torch.einsum("kij,bki->bkj", vectors, x_t[:, None] - alpha * self.means)
        log_density = -0.5 * (y.square() / variance + (2 * math.pi * variance).log()).sum(2)
        x0 = self.means + torch.einsum("kij,bkj->bki", vectors, alpha * values / variance * y)
        return self.weights.log() + log_density, x0


def _columns(x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
    """alpha and sigma, [b, 1]."""
    alpha, sigma = (torch.as_tensor(c, dtype=torch.float64).expand(len(x_t)) for c in (level.alpha, level.sigma))
    return alpha[:, None], sigma[:, None]


def tensor(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


CORRELATED = Mixture(
    tensor(1.0),
    tensor([0.3, -0.2, 0.1]),
    tensor([[0.30, 0.12, -0.05], [0.12, 0.20, 0.04], [-0.05, 0.04, 0.10]]),
)
MODES = Mixture(
    tensor(0.5, 0.3, 0.2),
    tensor([-0.6, 0.1], [0.5, 0.5], [0.4, -0.6]),
    tensor([[0.04, 0.01], [0.01, 0.02]], [[0.02, -0.01], [-0.01, 0.05]], [[0.03, 0.0], [0.0, 0.03]]),
)

LINE = Mixture(tensor(0.6, 0.4), tensor([-0.4], [0.6]), tensor([[0.04]], [[0.01]]))


def exact_network(data: Mixture, prediction: Prediction) -> NetworkFunction:
    """The network that has learned all there is to learn of the data."""

    def network(x: Tensor, t: Tensor, level: NoiseLevel) -> Tensor:
        del t
        x_t = x.double()
        alpha, sigma = _columns(x_t, level)
        if prediction == "edm":  # Karras et al. 2022, table 1, whose x is x_t / alpha
            u = sigma / alpha
            norm = (u**2 + SIGMA_DATA**2).sqrt()
            x_u = norm * x_t  # c_in = 1 / norm
            d = data.x0(alpha * x_u, level)
            return (d - SIGMA_DATA**2 / norm**2 * x_u) / (u * SIGMA_DATA / norm)
        x0 = data.x0(x_t, level)
        eps = (x_t - alpha * x0) / sigma
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction]

    return network


def exact_denoiser(data: Mixture, prediction: Prediction) -> Denoise:
    return denoiser(exact_network(data, prediction), Parameterization(prediction, SIGMA_DATA))


def schedule_of(kind: str, **settings: Any) -> Schedule:
    """A schedule by its config's kind, or `zero_terminal`: the linear one without signal at its end."""
    if kind == "edm":
        return EDMScheduleConfig(kind="edm", sigma_data=SIGMA_DATA, **settings).build()
    if kind == "flow":
        return FlowScheduleConfig(kind="flow", **settings).build()
    if kind == "zero_terminal":
        return DiscreteScheduleConfig(zero_terminal_snr=True, **settings).build()
    return DiscreteScheduleConfig.model_validate({"kind": kind, **settings}).build()


def first_level(schedule: Schedule) -> NoiseLevel:
    """The level with the least noise, in Python numbers."""
    return NoiseLevel(*(column[0].item() for column in schedule.chain()))


PAIRS: list[tuple[str, Prediction]] = [
    ("linear", "eps"),
    ("linear", "x0"),
    ("cosine", "v"),
    ("zero_terminal", "x0"),
    ("edm", "edm"),
    ("flow", "flow"),
    ("zero_terminal", "v"),
    ("flow", "x0"),
]
"""Schedules of each shape, with each prediction that goes with them."""
