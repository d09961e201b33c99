"""Whether the tensors in a checkpoint's files are whole, and the ones that are asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from diffpipe.errors import UserError
from diffpipe.plural import plural

_OF_FP16 = (".scale", ".growth_tracker")  # of the optimizer's GradScaler; no moment has such a name


def require_stored(path: Path, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless the files hold every one of `tensors`, whole, in its shape and dtype.

    path: of the checkpoint. stored: the tensors' metadata, as torch.distributed.checkpoint reads it from the files.
    """
    for name, tensor in tensors.items():
        there: Any = stored.get(name)
        shape = None if there is None else tuple(there.size)
        if there is None and name.startswith("optimizer.") and name.endswith(_OF_FP16):
            raise UserError(
                f"{path} was trained without fp16, so the scale of its loss is missing; resume it with "
                f"train.precision=bf16 or fp32"
            )
        if there is None or shape != tuple(tensor.shape):
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise UserError(
                f"{path} is a checkpoint of another model: {name} {found} there and has shape "
                f"{list(tensor.shape)} here; restore the stage section of the config, or train into another run.dir"
            )
        if there.properties.dtype != tensor.dtype:
            raise UserError(
                f"{path}: {name} is stored as {there.properties.dtype}, and a save stores it as {tensor.dtype}; take "
                f"another checkpoint"
            )
        _require_whole(path, name, there)


def _require_whole(path: Path, name: str, stored: TensorStorageMetadata) -> None:
    """Raise UserError unless the chunks fill the tensor, each place once."""
    chunks = sorted(stored.chunks, key=lambda chunk: tuple(chunk.offsets))
    inside = all(offset >= 0 for chunk in chunks for offset in chunk.offsets)
    # With every chunk inside the tensor, no two overlapping, and the volumes adding up, no place is left out.
    filled = sum(math.prod(chunk.sizes) for chunk in chunks)
    if not inside or filled != math.prod(stored.size) or any(map(_overlaps, *_neighbours(chunks))):
        raise UserError(
            f"{path}: {name} is stored in part only, or twice: its {plural(len(chunks), 'part holds', 'parts hold')} "
            f"{filled} of {plural(math.prod(stored.size), 'value')}; take another checkpoint"
        )


def _neighbours(chunks: list[ChunkStorageMetadata]) -> tuple[list[ChunkStorageMetadata], list[ChunkStorageMetadata]]:
    """The pairs of chunks that can overlap: sorted by offset, each with those that begin before it ends in dim 0."""
    left, right = [], []
    for i, chunk in enumerate(chunks):
        end = chunk.offsets[0] + chunk.sizes[0] if len(chunk.sizes) else 1
        begins_before = lambda other, end=end: (other.offsets[0] if len(other.offsets) else 0) < end  # noqa: E731
        for other in itertools.takewhile(begins_before, itertools.islice(chunks, i + 1, None)):
            left.append(chunk)
            right.append(other)
    return left, right


def _overlaps(one: ChunkStorageMetadata, other: ChunkStorageMetadata) -> bool:
    ranges = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in ranges)


def require_counts(path: Path, counts: Mapping[str, Tensor], most: int) -> None:
    """Raise UserError unless every optimizer's count of updates is a whole number from 0 to `most`."""
    for name, count in counts.items():
        value = float(count)
        if not (0 <= value <= most and value == math.floor(value)):
            raise UserError(
                f"{path}: {name} is {value:g}, and after so many steps it is a whole number from 0 to {most}; take "
                f"another checkpoint"
            )


def is_count(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a checkpoint is an optimizer's count of the updates of one parameter."""
    return name.startswith("optimizer.") and name.endswith(".step") and tensor.ndim == 0 and tensor.dtype != torch.bool
