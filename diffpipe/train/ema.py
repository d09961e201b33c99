"""Exponential moving averages of the weights, by ema-pytorch: the classical one, or power-function averages."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from ema_pytorch import EMA
from pydantic import Field, field_validator
from torch import nn
from torch.distributed.tensor.experimental import implicit_replication

from diffpipe.config import Config
from diffpipe.train import power_profile
from diffpipe.train.power_profile import MAX_SIGMA_REL

Decay = Callable[[int], float]
"""The share of the average that step 0, 1, … keeps."""


class EMAConfig(Config):
    """The average forgets at rate 1 − decay a step, after a warm-up in which its memory grows with the run.

    At step n the decay is min(decay, 1 − (1 + n)^−power): with power 3/4 the memory spans about the last n^(3/4) steps.
    """

    kind: Literal["classical"] = "classical"
    """classical: one average, with the decay below."""
    decay: float = Field(default=0.9999, gt=0, lt=1)
    """The share of the average that each step keeps, after the warm-up. Short runs take less, such as 0.999."""
    power: float = Field(default=0.75, gt=0)
    """Speed of the warm-up: at step n the decay is at most 1 - (1 + n)^-power."""

    def decay_at(self, step: int) -> float:
        return min(self.decay, 1 - (1 + step) ** -self.power)

    @property
    def decays(self) -> tuple[Decay, ...]:
        """The decay of each average that is kept."""
        return (self.decay_at,)

    @property
    def weights(self) -> str:
        """The name of the average that samples and scores use."""
        return "ema"


class PowerEMAConfig(Config):
    """Averages whose memory is a constant share of the run, kept at several lengths (Karras et al. 2024, section 3).

    Snapshots of them are stored in ema/ of the run directory. From these, `--ema` gives an average of any length after
    the run.
    """

    kind: Literal["power"]
    """power: averages in which the weights after step τ count as τ^gamma. --ema chooses a length after the run."""
    sigma_rel: tuple[Annotated[float, Field(gt=0, lt=MAX_SIGMA_REL)], ...] = Field(default=(0.05, 0.1), min_length=1)
    """Lengths of the averages: the standard deviation of τ/t. Samples and scores use the first one."""
    snapshot_every: int = Field(default=1000, ge=1)
    """Steps between snapshots of the averages. With 16 or more in a run, --ema gives lengths from 0.03 to 0.2."""
    keep_snapshots: int = Field(default=0, ge=0)
    """Newest snapshots to keep; 0: all of them."""

    @field_validator("sigma_rel")
    @classmethod
    def _distinct(cls, lengths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(lengths)) < len(lengths):
            raise ValueError("the same length is there twice; give each once")
        return lengths

    @property
    def gammas(self) -> tuple[float, ...]:
        """The exponent of each length."""
        return tuple(power_profile.sigma_rel_to_gamma(sigma_rel) for sigma_rel in self.sigma_rel)

    @property
    def decays(self) -> tuple[Decay, ...]:
        """The decay of each average that is kept."""
        return tuple(functools.partial(power_profile.decay_at, gamma) for gamma in self.gammas)

    @property
    def weights(self) -> str:
        """The name of the average that samples and scores use."""
        return f"ema {self.sigma_rel[0]:g}"


def prefix(index: int) -> str:
    """The first part of the names, in a checkpoint, of the tensors of average number `index`."""
    return f"ema_{index}" if index else "ema"


class ModelEMA:
    """The moving averages of one network's parameters and buffers.

    nets: one averaged network for each of the config's decays, in evaluation mode. They must be sharded as the trained
    one is. frozen: the names of the parameters that are not trained, and not averaged.
    """

    def __init__(self, config: EMAConfig | PowerEMAConfig, net: nn.Module, averaged: Sequence[nn.Module] | None = None):
        """net: the trained network without wrapper: ema-pytorch matches names, and a wrapper's prefix matches none.

        averaged: networks that hold the averages, sharded as the first one is; None: copies of the first.
        """
        self._decays = config.decays
        frozen = {name: p for name, p in net.named_parameters() if not p.requires_grad}
        self.frozen = frozen.keys()
        # A deep copy shares what its memo has: one frozen network is enough.
        copies = averaged or [copy.deepcopy(net, {id(p): p for p in frozen.values()}) for _ in self._decays]
        self._emas: list[Any] = [
            EMA(net, average, include_online_model=False, use_foreach=True, ignore_names={*frozen})
            for average in copies
        ]
        self.nets: list[nn.Module] = [ema.ema_model for ema in self._emas]
        trained = dict(net.named_parameters())
        for ema, average in zip(self._emas, self.nets, strict=True):
            ema.copy_params_from_model_to_ema()
            for buffer, value in zip(average.buffers(), net.buffers(), strict=True):
                buffer.copy_(value)  # ema-pytorch leaves out integers
            average.requires_grad_(False).eval()
            names = dict(average.named_parameters()).keys()
            assert trained.keys() == names, "an average with other parameters would never move"

    @property
    def net(self) -> nn.Module:
        """The averaged network that samples and scores use."""
        return self.nets[0]

    @torch.no_grad()
    def copy_frozen(self) -> None:
        """Give the averages the network's frozen parameters, of which sharded averages have copies."""
        trained = dict(self._emas[0].model.named_parameters())
        for average in self.nets:
            for name, parameter in average.named_parameters():
                if name in self.frozen:
                    parameter.copy_(trained[name])

    def update(self, step: int) -> None:
        """Move towards the weights after `step`. ema-pytorch's own step counter would wait for the device."""
        with implicit_replication():  # buffers are not sharded, also where parameters are
            for ema, decay_at in zip(self._emas, self._decays, strict=True):
                ema.update_moving_average(ema.ema_model, ema.model, decay_at(step))
