"""Whether two trainings are the same: what they saw, bit for bit what they hold, and how far they are apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator

PARTS = {"net": "weights", "ema": "averages", "optimizer": "optimizer state"}
SMALL = 1e-2  # of the largest value of its kind: below it a tensor may hold nothing but rounding errors


class Record(NamedTuple):
    """What one rank took for one step."""

    step: int
    positions: list[int]
    keys: list[str]


class Deviation(NamedTuple):
    """The greatest difference in a part of the state, relative to its tensor's scale, and the tensor it is in."""

    value: float
    tensor: str


def read_seen(folder: Path) -> list[Record]:
    """What all ranks recorded in `seen/`, in each rank's order. Half a line, which a kill can leave, is passed over."""
    lines = [line for path in sorted(folder.glob("rank-*.jsonl")) for line in path.read_text().splitlines(True)]
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Record(line["step"], line["positions"], line["keys"]) for line in found]


def different_samples(
    straight: Sequence[Record], attempts: Sequence[Sequence[Record]], steps: int, batch_size: int
) -> list[str]:
    """What is wrong with the samples of a training that took several attempts, a sentence each; none: all is well.

    Every attempt must mean the same samples by a step as the straight run does. An attempt's steps count up to where
    the next one went on: these must be all steps, each with all positions of its batch, and each position once.
    """
    expected: dict[int, dict[int, str]] = {}
    complaints = _add(straight, expected, "the straight run")
    for step in range(steps):
        batch = set(range(step * batch_size, (step + 1) * batch_size))
        complaints += _unlike(expected.get(step, {}).keys(), batch, f"step {step} of the straight run")
    counts: dict[int, set[int]] = {}
    for number, records in enumerate(attempts, 1):
        there: dict[int, dict[int, str]] = {}
        complaints += _add(records, there, f"attempt {number}")
        for step, taken in there.items():
            for position, key in taken.items():
                meant = expected.get(step, {}).get(position)
                if key != meant:
                    was = f"has {meant}" if meant is not None else "has no such position"
                    where = f"step {step} of attempt {number} has {key} at position {position}"
                    complaints.append(f"{where}, and the straight run {was}")
        if there:
            counts = {step: at for step, at in counts.items() if step < min(there)}
            counts |= {step: {*taken} for step, taken in there.items()}
    for step in range(steps):
        complaints += _unlike(counts.get(step, set()), expected.get(step, {}).keys(), f"step {step}")
    return complaints


def trained_again(attempts: Sequence[Sequence[Record]]) -> int:
    """How many steps were trained more than once."""
    times: dict[int, int] = {}
    for records in attempts:
        for step in {record.step for record in records}:
            times[step] = times.get(step, 0) + 1
    return sum(count > 1 for count in times.values())


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, whatever the number of processes that it is sharded over."""
    saved = dcp.HuggingFaceStorageReader(str(checkpoint.path)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        for name, about in saved.items()
    }
    checkpoints.load(checkpoint, tensors, Communicator())
    return tensors


def different_bits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that differ in any bit, in shape or type, or that one side lacks."""
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or not _identical(ours[name], theirs[name])
    ]


def deviations(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Deviation]:
    """The greatest deviation of each part of the state: weights, averages, optimizer state.

    A tensor's scale is its largest value in `theirs`, or a hundredth of the largest of its kind (the same network,
    the same moment) where that is more. One that a side lacks, of another shape, or not finite is infinitely far.
    """
    largest = {name: tensor.abs().max().item() if tensor.numel() else 0.0 for name, tensor in theirs.items()}
    of_kind: dict[tuple[str, ...], float] = {}
    for name, value in largest.items():
        of_kind[_kind(name)] = max(of_kind.get(_kind(name), 0.0), value)
    found = {part: Deviation(0.0, "") for part in PARTS.values()}
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        value = float("inf")
        if a is not None and b is not None and a.shape == b.shape:
            scale = max(largest[name], SMALL * of_kind[_kind(name)])
            value = _apart(a, b) / scale if scale else _apart(a, b)
        part = PARTS[name.partition(".")[0]]
        found[part] = max(found[part], Deviation(value if value == value else float("inf"), name))  # noqa: PLR0124 (NaN)
    return found


def _add(records: Sequence[Record], into: dict[int, dict[int, str]], whose: str) -> list[str]:
    """Put the records of one attempt together by step and position; complains of a position that comes twice."""
    complaints = []
    for step, positions, keys in records:
        taken = into.setdefault(step, {})
        for position, key in zip(positions, keys, strict=True):
            if position in taken:
                complaints.append(f"step {step} of {whose} has position {position} twice")
            taken[position] = key
    return complaints


def _unlike(got: Iterable[int], wanted: Iterable[int], where: str) -> list[str]:
    lost, added = sorted({*wanted} - {*got}), sorted({*got} - {*wanted})
    complaints = [f"{where} lacks {len(lost)} positions, {lost[0]} the first"] if lost else []
    complaints += [f"{where} has {len(added)} positions too many, {added[0]} the first"] if added else []
    return complaints


def _identical(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _apart(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def _kind(name: str) -> tuple[str, ...]:
    """What a tensor's values are comparable with: those of its network, or one moment of its network's optimizer."""
    part, owner, *rest = name.split(".")
    return (part, owner, rest[-1]) if part == "optimizer" else (part, owner)
