"""The moving average against its recursion in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.train.ema import EMAConfig, ModelEMA


def test_the_average_is_the_recursion_with_the_decay_of_each_step() -> None:
    config = EMAConfig(decay=0.9, power=0.75)
    net = nn.Linear(1, 1, bias=False)
    average = ModelEMA(config, net)
    expected = net.weight.item()
    for step in range(30):
        with torch.no_grad():
            net.weight.fill_(float(step))
        average.update(step)
        decay = min(0.9, 1 - (1 + step) ** -0.75)
        expected = decay * expected + (1 - decay) * step
    weight = average.net.get_parameter("weight")
    assert weight.item() == pytest.approx(expected, rel=1e-5)
    assert not weight.requires_grad
    assert config.decay_at(0) == 0  # the first step sets the average to the weights
    assert config.decay_at(10**9) == 0.9


def test_buffers_are_averaged_too_and_the_average_is_in_evaluation_mode() -> None:
    net = nn.BatchNorm1d(1)
    average = ModelEMA(EMAConfig(decay=0.5, power=50.0), net)  # so fast a warm-up that the decay is 0.5 at once
    assert net.training
    assert not average.net.training
    assert net.running_mean is not None
    net.running_mean.fill_(8.0)
    average.update(1)
    assert average.net.get_buffer("running_mean").item() == pytest.approx(4.0)
