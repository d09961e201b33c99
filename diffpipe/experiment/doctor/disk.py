"""The room on the disk: checkpoints, snapshots of averages and grids of samples, until the last step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.interfaces import ImageShape
from diffpipe.machine import gigabytes
from diffpipe.plural import plural
from diffpipe.train.checkpoint import committed
from diffpipe.train.ema import PowerEMAConfig


def free_bytes(path: Path) -> int:
    """The free bytes of the disk that a path is on, or will be."""
    return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def saved_bytes(experiment: Experiment) -> list[int]:
    """The bytes of each of the newest checkpoints that are there already, which later ones will replace."""
    paths = committed(experiment.run.checkpoints)[: experiment.checkpoint.keep_last]
    return [sum(file.stat().st_size for file in path.iterdir()) for path in paths]


def too_little_room(
    experiment: Experiment, shape: ImageShape, checkpoint: int, averages: int, *, saved: Sequence[int], free: int
) -> Iterator[Finding]:
    """Findings where a save, or all that is kept, finds no room.

    checkpoint, averages: the bytes of a checkpoint, and of the averages in it. saved: see `saved_bytes`.
    """
    config, steps, ema = experiment.checkpoint, experiment.train.steps, experiment.ema
    saves = 1 + (steps // config.every if config.every else 0)
    at_once = min(config.keep_last + 1, len(saved) + saves)  # an old one is removed after the new one is there
    need = at_once * checkpoint - sum(saved)
    if need > free:
        yield Finding(
            "error",
            f"{experiment.run.checkpoints}: {plural(at_once, 'checkpoint')} of {gigabytes(checkpoint)} are there at a "
            f"time, and {gigabytes(free)} are free; free {gigabytes(need - free)}, lower checkpoint.keep_last, or give "
            f"another run.dir",
        )
        return
    others = {
        "checkpoints of checkpoint.keep_every": checkpoint * (steps // config.keep_every if config.keep_every else 0),
        "grids of samples": _grid_bytes(shape, experiment.sample.n) * _times(steps, experiment.sample.every),
    }
    if isinstance(ema, PowerEMAConfig):
        snapshots = _times(steps, ema.snapshot_every)
        kept = min(snapshots, ema.keep_snapshots + 1) if ema.keep_snapshots else snapshots
        others["snapshots of averages"] = averages * kept
    total, what = need + sum(others.values()), max(others, key=lambda name: others[name])
    if total > free:
        yield Finding(
            "warning",
            f"{experiment.run.path}: {gigabytes(total)} will be written until step {steps}, {gigabytes(others[what])} "
            f"of them {what}, and {gigabytes(free)} are free; free some space, save or sample less often, or give "
            f"another run.dir",
        )


def _times(steps: int, every: int) -> int:
    return steps // every if every else 0


def _grid_bytes(shape: ImageShape, n: int) -> int:
    """At most: a PNG of noise has about as many bytes as numbers."""
    return n * shape.channels * shape.resolution.pixels
