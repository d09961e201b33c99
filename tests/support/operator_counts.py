"""Counts of torch operators: how often a step would have made a GPU wait, without one."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCounts(TorchDispatchMode):
    """Counts the operators dispatched within it, by name: `counts["_local_scalar_dense"]`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().partition("::")[2].partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))
