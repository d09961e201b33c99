"""The moving average against its recursion in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diffpipe.train.ema import EMAConfig, ModelEMA, PowerEMAConfig, prefix


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


def test_power_averages_are_the_means_of_the_path_by_their_profiles() -> None:
    config = PowerEMAConfig(kind="power", sigma_rel=(0.05, 0.1, 0.25))
    net = nn.BatchNorm1d(1)
    average = ModelEMA(config, net)
    path = np.log(np.arange(1, 201)) + np.sin(np.arange(200) / 20)
    for step, value in enumerate(path):
        with torch.no_grad():
            net.weight.fill_(value)
            net.running_mean.fill_(2 * value)  # pyright: ignore[reportOptionalMemberAccess]
        average.update(step)
    for gamma, averaged in zip(config.gammas, average.nets, strict=True):
        shares = np.diff((np.arange(201) / 200) ** (gamma + 1))
        assert averaged.get_parameter("weight").item() == pytest.approx(shares @ path, rel=1e-5)
        assert averaged.get_buffer("running_mean").item() == pytest.approx(2 * shares @ path, rel=1e-5)
    assert average.net is average.nets[0]
    assert [prefix(i) for i in range(3)] == ["ema", "ema_1", "ema_2"]


@pytest.mark.parametrize("lengths", [(), (0.05, 0.05), (0.0,), (0.28,)])
def test_lengths_that_cannot_be_kept_are_refused(lengths: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="sigma_rel"):
        PowerEMAConfig(kind="power", sigma_rel=lengths)
