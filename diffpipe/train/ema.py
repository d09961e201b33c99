"""Exponential moving averages of the weights, by ema-pytorch."""

from __future__ import annotations

from typing import Any

from ema_pytorch import EMA
from pydantic import Field
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from diffpipe.config import Config


class EMAConfig(Config):
    """The average forgets at rate 1 − decay a step, after a warm-up in which its memory grows with the run.

    At step n the decay is min(decay, 1 − (1 + n)^−power): with power 3/4 the memory spans about the last n^(3/4) steps.
    """

    decay: float = Field(default=0.9999, gt=0, lt=1)
    """The share of the average that each step keeps, after the warm-up. Short runs take less, such as 0.999."""
    power: float = Field(default=0.75, gt=0)
    """Speed of the warm-up: at step n the decay is at most 1 - (1 + n)^-power."""

    def decay_at(self, step: int) -> float:
        return min(self.decay, 1 - (1 + step) ** -self.power)


class ModelEMA:
    """The moving average of one network's parameters and buffers.

    net: the averaged network, frozen and in evaluation mode. It must be sharded as the trained one is.
    """

    def __init__(self, config: EMAConfig, net: nn.Module, averaged: nn.Module | None = None):
        """net: the trained network without wrapper: ema-pytorch matches names, and a wrapper's prefix matches none.

        averaged: a second network that holds the average, sharded as the first one is; None: a copy of the first.
        """
        self.config = config
        self._ema: Any = EMA(net, averaged, include_online_model=False, use_foreach=True)
        self._ema.copy_params_from_model_to_ema()
        for copy, value in zip(self._ema.ema_model.buffers(), net.buffers(), strict=True):
            copy.copy_(value)  # ema-pytorch leaves out integers
        self.net: nn.Module = self._ema.ema_model
        self.net.requires_grad_(False).eval()
        trained, average = dict(net.named_parameters()), dict(self.net.named_parameters())
        assert trained.keys() == average.keys(), "an average with other parameters would never move"

    def update(self, step: int) -> None:
        """Move towards the weights after `step`. ema-pytorch's own step counter would wait for the device."""
        with implicit_replication():  # buffers are not sharded, also where parameters are
            self._ema.update_moving_average(self._ema.ema_model, self._ema.model, self.config.decay_at(step))
