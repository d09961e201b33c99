"""The samples of two runs compared: which positions of the stream, and which keys, each step was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from diffpipe.plural import plural


class SampleRecord(NamedTuple):
    """The samples of one rank in one step."""

    step: int
    positions: list[int]
    keys: list[str]


def read_seen(folder: Path) -> list[SampleRecord]:
    """The records of all ranks in `seen/`, in each rank's order, without the partial line that a kill can leave."""
    lines = [line for path in sorted(folder.glob("rank-*.jsonl")) for line in path.read_text().splitlines(True)]
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [SampleRecord(record["step"], record["positions"], record["keys"]) for record in records]


def sample_differences(
    uninterrupted: Sequence[SampleRecord], attempts: Sequence[Sequence[SampleRecord]], steps: int, batch_size: int
) -> list[str]:
    """Sentences on how the samples of a run of several attempts differ from the uninterrupted run's; empty if equal.

    Every attempt must have the samples of the uninterrupted run in each of its steps. The steps of an attempt count up
    to the one from which the next attempt resumed. These must be all steps, each with all positions of its batch, and
    each position once.
    """
    expected: dict[int, dict[int, str]] = {}
    differences = _collect(uninterrupted, expected, "the uninterrupted run")
    for step in range(steps):
        batch = set(range(step * batch_size, (step + 1) * batch_size))
        differences += _position_differences(expected.get(step, {}), batch, f"step {step} of the uninterrupted run")
    counted: dict[int, set[int]] = {}
    for number, records in enumerate(attempts, 1):
        attempt: dict[int, dict[int, str]] = {}
        differences += _collect(records, attempt, f"attempt {number}")
        for step, samples in attempt.items():
            for position, key in samples.items():
                expected_key = expected.get(step, {}).get(position)
                if key != expected_key:
                    other = f"has {expected_key}" if expected_key is not None else "has no such position"
                    where = f"step {step} of attempt {number} has {key} at position {position}"
                    differences.append(f"{where}, and the uninterrupted run {other}")
        if attempt:
            counted = {step: positions for step, positions in counted.items() if step < min(attempt)}
            counted |= {step: {*samples} for step, samples in attempt.items()}
    for step in range(steps):
        differences += _position_differences(counted.get(step, set()), expected.get(step, {}), f"step {step}")
    return differences


def count_repeated_steps(attempts: Sequence[Sequence[SampleRecord]]) -> int:
    """The number of steps that more than one attempt trained."""
    times: dict[int, int] = {}
    for records in attempts:
        for step in {record.step for record in records}:
            times[step] = times.get(step, 0) + 1
    return sum(count > 1 for count in times.values())


def _collect(records: Sequence[SampleRecord], by_step: dict[int, dict[int, str]], run: str) -> list[str]:
    """Add the keys of one attempt by step and position. Returns a sentence for each position that comes twice."""
    differences = []
    for step, positions, keys in records:
        samples = by_step.setdefault(step, {})
        for position, key in zip(positions, keys, strict=True):
            if position in samples:
                differences.append(f"step {step} of {run} has position {position} twice")
            samples[position] = key
    return differences


def _position_differences(positions: Iterable[int], expected: Iterable[int], where: str) -> list[str]:
    missing, extra = sorted({*expected} - {*positions}), sorted({*positions} - {*expected})
    differences = [f"{where} lacks {plural(len(missing), 'position')}, {missing[0]} the first"] if missing else []
    differences += [f"{where} has {plural(len(extra), 'position')} too many, {extra[0]} the first"] if extra else []
    return differences
