"""State dicts under other names: which module is called what elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Names = Mapping[str, tuple[str, ...]]
"""Each module of ours with its name elsewhere, or with those of several whose tensors, stacked in order, are ours."""


def to_theirs(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our tensors under their names; one that is several there is split along its first dimension."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        parts = tensor.chunk(len(names[module]))
        renamed |= {f"{name}.{leaf}": part for name, part in zip(names[module], parts, strict=True)}
    return renamed


def to_ours(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Their tensors under our names: the inverse of `to_theirs`. Tensors of modules that `names` lacks are left out."""
    leaves: dict[str, list[str]] = {}
    for key in tensors:
        module, _, leaf = key.rpartition(".")
        leaves.setdefault(module, []).append(leaf)
    return {
        f"{ours}.{leaf}": tensors[f"{theirs[0]}.{leaf}"]
        if len(theirs) == 1
        else torch.cat([tensors[f"{name}.{leaf}"] for name in theirs])
        for ours, theirs in names.items()
        for leaf in leaves.get(theirs[0], [])
    }
