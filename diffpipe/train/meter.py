"""The losses and gradient norms since the last log step, kept on the device until they are logged."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffpipe.interfaces import Batch, Loss
from diffpipe.train.nonfinite import NonFiniteUpdate
from diffpipe.train.runtime import Runtime


class _ForwardPass(NamedTuple):
    step: int
    phase: str
    keys: Sequence[str]
    finite: Tensor
    """bool [b]"""


class Meter:
    """Sums of losses and lists of norms since the last log step.

    The methods that add never wait for the device. `phase` is the prefix of a phase's values, empty where the stage has
    one phase.
    """

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        self.first = step
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by the names that come together: [names, 2], sum and count
        self._norms: dict[str, list[Tensor]] = {}
        self._steps: dict[str, list[int]] = {}
        self._passes: list[_ForwardPass] = []
        self.skip_time()

    def skip_time(self) -> None:
        """Restart the clock: the time of the hooks is not training time."""
        self._since, self._waited = time.perf_counter(), 0.0

    def add_wait(self, seconds: float) -> None:
        """Count seconds that this rank waited for data."""
        self._waited += seconds

    def data_wait(self) -> float:
        """The share of this rank's time since the clock started that it waited for data."""
        return min(1.0, self._waited / max(time.perf_counter() - self._since, 1e-9))

    def add_loss(self, step: int, phase: str, batch: Batch, loss: Loss) -> None:
        named = {"loss": loss.per_sample, **loss.metrics}
        # One table for all of them: a handful of operators, however many names there are.
        values = torch.stack([value.detach().float() for value in named.values()])
        counts = torch.isfinite(values)
        if batch.valid is not None:
            counts &= batch.valid
        added = torch.stack([values.where(counts, 0).double().sum(1), counts.sum(1).double()], dim=1)
        names = tuple(phase + name for name in named)
        self._sums[names] = self._sums[names] + added if names in self._sums else added
        finite = torch.isfinite(loss.per_sample.detach())
        if batch.valid is not None:
            finite = finite | ~batch.valid
        self._passes.append(_ForwardPass(step, phase, batch.keys, finite))

    def add_norm(self, step: int, phase: str, norm: Tensor) -> None:
        self._norms.setdefault(phase, []).append(norm)
        self._steps.setdefault(phase, []).append(step)

    def nonfinite_updates(self, runtime: Runtime) -> list[NonFiniteUpdate]:
        """The updates that were left out on any rank, the same list on all. Waits for the device. A collective."""
        local = self._nonfinite_losses(runtime.rank)
        # fp16 overflows now and then by design: its scaler skips the step and lowers the scale.
        if runtime.dtype != torch.float16:
            local += self._nonfinite_gradients(runtime.rank)
        updates = [update for rank in runtime.comm.gather(local) for update in rank]
        # A non-finite loss makes the gradient non-finite, too: the loss names the samples.
        by_loss = {(update.step, update.phase) for update in updates if update.quantity == "loss"}
        return sorted(u for u in updates if u.quantity == "loss" or (u.step, u.phase) not in by_loss)

    def _nonfinite_losses(self, rank: int) -> list[NonFiniteUpdate]:
        if torch.cat([forward.finite for forward in self._passes]).all():
            return []
        updates = []
        for forward in self._passes:
            keys = tuple(key for key, finite in zip(forward.keys, forward.finite.tolist(), strict=True) if not finite)
            if keys:
                updates.append(NonFiniteUpdate(forward.step, forward.phase, "loss", rank, keys))
        return updates

    def _nonfinite_gradients(self, rank: int) -> list[NonFiniteUpdate]:
        """The reduced gradient is the same on all ranks; each names its own samples."""
        updates = []
        for phase, norms in self._norms.items():
            for i in (~torch.isfinite(torch.stack(norms))).nonzero().flatten().tolist():
                step = self._steps[phase][i]
                passes = [forward for forward in self._passes if (forward.step, forward.phase) == (step, phase)]
                keys = tuple(key for forward in passes for key in forward.keys)
                updates.append(NonFiniteUpdate(step, phase, "gradient", rank, keys))
        return updates

    def means(self, runtime: Runtime) -> tuple[dict[str, float], float]:
        """The mean loss per sample and gradient norm per update, by name, and the seconds since the clock started.

        Non-finite values and bad samples are left out, and so is a name without any other but a loss. Waits for the
        device. A collective.
        """
        seconds = time.perf_counter() - self._since
        sums = runtime.comm.sum(torch.cat([*self._sums.values()])).tolist()
        totals: dict[str, float] = {}
        counted: dict[str, float] = {}
        for name, (total, count) in zip(itertools.chain.from_iterable(self._sums), sums, strict=True):
            totals[name], counted[name] = totals.get(name, 0.0) + total, counted.get(name, 0.0) + count
        means = {
            name: total / max(counted[name], 1)
            for name, total in totals.items()
            if counted[name] or name.endswith("loss")
        }
        for phase, norms in self._norms.items():
            finite = [norm for norm in torch.stack(norms).tolist() if norm < float("inf")]
            means[f"{phase}grad_norm"] = sum(finite) / max(len(finite), 1)
        return means, seconds
