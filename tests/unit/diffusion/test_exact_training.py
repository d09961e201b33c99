"""Each objective, trained on known data, reaches the least loss that there is: that of the exact denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
from diffpipe.rng import KeyedRNG
from tests.support.ground_truth import LINE, SIGMA_DATA, exact_network, schedule_of

STEPS, BATCH, HELD_OUT = 400, 512, 20_000
Network = Callable[[Tensor, Tensor, NoiseLevel], Tensor]


class Objective(NamedTuple):
    """The objective of a diffusion, and a batch of it by the positions of its samples."""

    kind: str
    prediction: Prediction
    weighting: dict[str, Any]

    @property
    def parameterization(self) -> Parameterization:
        return Parameterization(self.prediction, SIGMA_DATA)

    def loss(self, network: Network, schedule: Schedule, positions: range) -> Tensor:
        rng = KeyedRNG(0, torch.tensor(positions))
        level = draw_level(schedule, TimestepsConfig(low_discrepancy=True), self.kind, rng)
        x0 = LINE.sample(len(positions), seed=positions.start)
        noised = NoisedBatch.of(x0, rng.normal("noise", x0.shape[1:]).double(), level)
        x = scaled_input(self.parameterization, level, noised.x_t)
        output = network(x, network_time(level, x), level)
        weighting = WeightingConfig.model_validate(self.weighting)
        return training_loss(self.parameterization, schedule, weighting, noised, output).per_sample


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


def train(objective: Objective, schedule: Schedule, net: MLP) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        loss = objective.loss(net, schedule, range(step * BATCH, (step + 1) * BATCH)).mean()
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
