"""What a log step says of the steps since the last one: sums on the device, and which updates were not finite."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffpipe.interfaces import Batch, Loss
from diffpipe.train.runtime import Runtime


class NonFiniteUpdate(NamedTuple):
    """An update that was left out: `update` is the phase in a stage of several, else empty.

    keys: the samples of this rank whose loss was not finite; where it was the gradient, those of which it is the sum.
    """

    step: int
    update: str
    what: str
    rank: int
    keys: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.keys) - 8} more" if len(self.keys) > 8 else ""
        where = f"step {self.step}, rank {self.rank}: " + (f"{self.update.strip('/')}: " if self.update else "")
        return f"{where}the {self.what} of {', '.join(self.keys[:8])}{more} is not finite"


class _Pass(NamedTuple):
    step: int
    update: str
    keys: Sequence[str]
    finite: Tensor


class Meter:
    """Sums of losses and norms since the last log step, kept on the device."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        self.first = step
        self._sums: dict[str, Tensor] = {}
        self._norms: dict[str, list[Tensor]] = {}
        self._steps: dict[str, list[int]] = {}
        self._passes: list[_Pass] = []
        self._since = time.perf_counter()

    def skip_time(self) -> None:
        """Start the clock again: what the hooks took is not training time."""
        self._since = time.perf_counter()

    def add_loss(self, step: int, update: str, batch: Batch, loss: Loss) -> None:
        for name, value in {"loss": loss.per_sample, **loss.metrics}.items():
            counts = torch.isfinite(value.detach())
            if batch.valid is not None:
                counts &= batch.valid
            added = torch.stack([value.detach().where(counts, 0).sum().double(), counts.sum().double()])
            self._sums[update + name] = self._sums[update + name] + added if update + name in self._sums else added
        finite = torch.isfinite(loss.per_sample.detach())
        self._passes.append(_Pass(step, update, batch.keys, finite if batch.valid is None else finite | ~batch.valid))

    def add_norm(self, step: int, update: str, norm: Tensor) -> None:
        self._norms.setdefault(update, []).append(norm)
        self._steps.setdefault(update, []).append(step)

    def nonfinite_updates(self, runtime: Runtime) -> list[NonFiniteUpdate]:
        """The updates that were left out, on any rank, the same list on all. Waits for the device. A collective."""
        mine = []
        if not torch.cat([each.finite for each in self._passes]).all():
            for each in self._passes:
                keys = tuple(key for key, ok in zip(each.keys, each.finite.tolist(), strict=True) if not ok)
                mine += [NonFiniteUpdate(each.step, each.update, "loss", runtime.rank, keys)] if keys else []
        # fp16 overflows now and then by design: its scaler skips the step and lowers the scale.
        if runtime.dtype != torch.float16:
            mine += self._gradients(runtime.rank)
        found = [one for part in runtime.comm.gather(mine) for one in part]
        by_loss = {(one.step, one.update) for one in found if one.what == "loss"}
        return sorted(one for one in found if one.what == "loss" or (one.step, one.update) not in by_loss)

    def _gradients(self, rank: int) -> list[NonFiniteUpdate]:
        """The updates whose gradient is not finite: all ranks have the same, and each its own samples."""
        found = []
        for update, norms in self._norms.items():
            for i in (~torch.isfinite(torch.stack(norms))).nonzero().flatten().tolist():
                step = self._steps[update][i]
                of = [each.keys for each in self._passes if (each.step, each.update) == (step, update)]
                found.append(NonFiniteUpdate(step, update, "gradient", rank, tuple(key for keys in of for key in keys)))
        return found

    def means(self, runtime: Runtime) -> tuple[dict[str, float], float]:
        """Means a sample of the losses, means an update of the norms, and the seconds since the clock started.

        What is not finite is left out, and so are bad samples. A collective.
        """
        seconds = time.perf_counter() - self._since
        sums = runtime.comm.sum(torch.stack([*self._sums.values()]))
        means = {name: total / max(count, 1) for name, (total, count) in zip(self._sums, sums.tolist(), strict=True)}
        for update, norms in self._norms.items():
            finite = [norm for norm in torch.stack(norms).tolist() if norm < float("inf")]
            means[f"{update}grad_norm"] = sum(finite) / max(len(finite), 1)
        return means, seconds
