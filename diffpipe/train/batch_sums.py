"""Sums over the samples of a global batch, for a stage that tracks statistics of them: see `interfaces.Tracks`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffpipe.interfaces import Loss, Phase, Stage, Tracks
from diffpipe.train.distributed import Communicator


class BatchSums:
    """The sums of one update, added up over this rank's micro-batches, then over the ranks.

    They follow the gradient: a pass whose gradient does not count adds nothing here. Nothing waits for the device.
    """

    def __init__(self, stage: Stage):
        self._stage = stage
        self._sums: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Add the sums of one micro-batch."""
        for name, value in loss.sums.items():
            added = value.detach()
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    @torch.no_grad()
    def track(self, phase: Phase, nets: Mapping[str, nn.Module], norm: Float[Tensor, ""], comm: Communicator) -> None:
        """Give the stage the sums of the global batch. norm: of the update's gradient. A collective."""
        if not self._sums:
            return
        assert isinstance(self._stage, Tracks), "a loss has sums where its stage tracks something"
        sums = {name: comm.sum(value) for name, value in self._sums.items()}
        self._stage.track(phase, nets, sums, torch.isfinite(norm))
