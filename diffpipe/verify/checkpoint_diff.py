"""Two checkpoints compared: which tensors differ in any bit, and how far the weights are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator

PARTS = {"net": "weights", "ema": "averages", "optimizer": "optimizer state"}
MIN_SCALE = 1e-2  # of the largest value in its group; a smaller tensor may hold nothing but rounding errors


class Deviation(NamedTuple):
    """The largest difference in a part of the state, relative to its tensor's scale, and the name of that tensor."""

    value: float
    tensor: str


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint, unsharded, whatever the number of processes that wrote it."""
    metadata = dcp.HuggingFaceStorageReader(str(checkpoint.path)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for name, about in metadata.items()
    }
    checkpoints.load(checkpoint, tensors, Communicator())
    return tensors


def differing_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that differ in any bit, in shape or dtype, or that are missing on one side."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a or name not in b or not _same_bits(a[name], b[name])
    ]


def deviations(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Deviation]:
    """The largest deviation in each part of the state: weights, averages, optimizer state.

    A tensor's scale is its largest absolute value in `reference`, or a hundredth of the largest in its group (the same
    network, the same optimizer moment) where that is more. A tensor that is missing, of another shape or not finite
    deviates infinitely.
    """
    largest = {name: tensor.abs().max().item() if tensor.numel() else 0.0 for name, tensor in reference.items()}
    largest_in_group: dict[tuple[str, ...], float] = {}
    for name, value in largest.items():
        largest_in_group[_group(name)] = max(largest_in_group.get(_group(name), 0.0), value)
    result = {part: Deviation(0.0, "") for part in PARTS.values()}
    for name in sorted(tensors.keys() | reference.keys()):
        a, b = tensors.get(name), reference.get(name)
        value = float("inf")
        if a is not None and b is not None and a.shape == b.shape:
            scale = max(largest[name], MIN_SCALE * largest_in_group[_group(name)])
            value = _max_difference(a, b) / scale if scale else _max_difference(a, b)
        part = PARTS[name.partition(".")[0].partition("_")[0]]  # ema_1 is the second of several averages
        not_nan = value if value == value else float("inf")  # noqa: PLR0124 (NaN is not equal to itself)
        result[part] = max(result[part], Deviation(not_nan, name))
    return result


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)))


def _max_difference(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def _group(name: str) -> tuple[str, ...]:
    """The tensors whose scales are comparable: those of one network, or of one moment of its optimizer."""
    part, network, *rest = name.split(".")
    return (part, network, rest[-1]) if part == "optimizer" else (part, network)
