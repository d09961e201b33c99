"""Each objective, trained on known data, reaches the least loss that there is: that of the exact denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffpipe.diffusion.denoiser import network_time, scaled_input
from diffpipe.diffusion.objective import WeightingConfig
from diffpipe.diffusion.parameterization import Parameterization, Prediction
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import Schedule
from diffpipe.diffusion.timesteps import TimestepsConfig, draw_level
from diffpipe.diffusion.training_loss import NoisedBatch, training_loss
from diffpipe.nn.log_variance import LogVariance
from diffpipe.rng import KeyedRNG
from tests.support.ground_truth import LINE, SIGMA_DATA, exact_network, schedule_of

STEPS, BATCH, HELD_OUT = 300, 512, 20_000
Network = Callable[[Tensor, Tensor, NoiseLevel], Tensor]


class Objective(NamedTuple):
    """The objective of a diffusion, and a batch of it by the positions of its samples."""

    kind: str
    prediction: Prediction
    weighting: dict[str, Any]

    @property
    def parameterization(self) -> Parameterization:
        return Parameterization(self.prediction, SIGMA_DATA)

    def loss(self, network: Network, schedule: Schedule, positions: range, u: LogVariance | None = None) -> Tensor:
        rng = KeyedRNG(0, torch.tensor(positions))
        level = draw_level(schedule, TimestepsConfig(low_discrepancy=True), self.kind, rng)
        x0 = LINE.sample(len(positions), seed=positions.start)
        noised = NoisedBatch.of(x0, rng.normal("noise", x0.shape[1:]).double(), level)
        x = scaled_input(self.parameterization, level, noised.x_t)
        output = network(x, network_time(level, x), level)
        weighting = WeightingConfig.model_validate(self.weighting)
        return training_loss(self.parameterization, schedule, weighting, noised, output, u and u(level.time)).per_sample


class MLP(nn.Module):
    """A network of x_t, and of log(sigma / alpha): a + b x_t."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = 64
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, t: Tensor, level: NoiseLevel) -> Tensor:
        del t
        log_ratio = level.ratio.log().clamp(-6, 6)[:, None]
        waves = [wave(k * log_ratio) for k in (0.5, 1) for wave in (torch.sin, torch.cos)]
        features = torch.cat([4 * x, log_ratio / 3, *waves], dim=1)
        a, b = self.layers(features.float()).chunk(2, dim=1)
        return a + b * x.float()


def train(objective: Objective, schedule: Schedule, net: MLP, u: LogVariance | None = None) -> None:
    optimizer = torch.optim.Adam([*net.parameters(), *(u.parameters() if u else ())], lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        loss = objective.loss(net, schedule, range(step * BATCH, (step + 1) * BATCH), u).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()


@pytest.mark.parametrize(
    "objective",
    [
        Objective("linear", "eps", {}),
        Objective("cosine", "eps", {"kind": "min_snr"}),
        Objective("linear", "x0", {}),
        Objective("sigmoid", "x0", {"kind": "edm"}),
        Objective("zero_terminal", "v", {}),
        Objective("cosine", "v", {"kind": "p2"}),
        Objective("edm", "edm", {}),
        Objective("flow", "flow", {}),
        Objective("flow", "x0", {"kind": "min_snr"}),
    ],
    ids=str,
)
def test_a_trained_network_reaches_the_least_loss(objective: Objective) -> None:
    schedule, net = schedule_of(objective.kind), MLP()
    held_out = range(10**9, 10**9 + HELD_OUT)

    @torch.no_grad()
    def held_out_loss(network: Network) -> float:
        return objective.loss(network, schedule, held_out).mean().item()

    least, untrained = held_out_loss(exact_network(LINE, objective.prediction)), held_out_loss(net)
    train(objective, schedule, net)
    trained = held_out_loss(net)
    assert least < trained < 1.03 * least
    assert untrained > 1.1 * least


class ExactLogVariance(LogVariance):
    """u at which mse / exp(u) + u is least: the log of the exact denoiser's mse at each of 64 levels, interpolated."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(scale=1.0)
        schedule = schedule_of(objective.kind)
        self.ends = torch.linspace(-7, 5, 64, dtype=torch.float64)
        ratios = self.ends.exp().repeat_interleave(2000)
        level = NoiseLevel(torch.ones_like(ratios), ratios, (ratios.log() / 4).float())
        x0 = LINE.sample(len(ratios), seed=1)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        noised, meaning = NoisedBatch.of(x0, eps, level), objective.parameterization
        output = exact_network(LINE, objective.prediction)(scaled_input(meaning, level, noised.x_t), level.time, level)
        loss = training_loss(meaning, schedule, WeightingConfig(), noised, output).per_sample
        self.values = loss.double().reshape(64, -1).mean(1).log()

    def forward(self, t: Tensor) -> Tensor:
        interpolated = np.interp((4 * t).double().numpy(), self.ends.numpy(), self.values.numpy())
        return torch.tensor(interpolated).float()


def test_the_learned_weighting_reaches_the_log_of_the_least_loss() -> None:
    objective, net = Objective("edm", "edm", {"kind": "learned"}), MLP()
    schedule, u = schedule_of("edm"), LogVariance(scale=1.0)
    held_out = range(10**9, 10**9 + HELD_OUT)

    @torch.no_grad()
    def held_out_loss(network: Network, u: LogVariance) -> float:
        return objective.loss(network, schedule, held_out, u).mean().item()

    least, untrained = held_out_loss(exact_network(LINE, "edm"), ExactLogVariance(objective)), held_out_loss(net, u)
    train(objective, schedule, net, u)
    assert least < held_out_loss(net, u) < least + 0.03 < untrained
