"""Snapshots of power-function averages in ema/ of the run directory: when they are due, and which may stay.

They are written as checkpoints are, and hold the averages alone. `post_hoc_ema` makes averages of any length of them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import Destination
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.retention import prune_snapshots, remove_retired, retire, sweep
from diffpipe.train.ema import PowerEMAConfig, prefix


def every(experiment: Experiment) -> int:
    """The steps between two snapshots; 0: none."""
    return experiment.ema.snapshot_every if isinstance(experiment.ema, PowerEMAConfig) else 0


def due(experiment: Experiment, step: int) -> list[Destination]:
    """The place of the snapshot that is due after `step` steps; empty where none is."""
    ema = experiment.ema
    if not isinstance(ema, PowerEMAConfig) or step % ema.snapshot_every:
        return []
    return [
        Destination(experiment.run.snapshots, lambda folder: prune_snapshots(folder, ema.keep_snapshots), prefix(0))
    ]


def recover(experiment: Experiment, checkpoint: Checkpoint | None) -> str | None:
    """Make ema/ fit the checkpoint that a starting job resumes from. On rank 0, under the run's lock.

    Removes what killed jobs have left, and snapshots of steps that will be trained again. Without a checkpoint all
    snapshots are of an earlier run: their folder is renamed, and a warning is returned. Raises UserError.
    """
    directory = experiment.run.snapshots
    sweep(directory)
    try:
        if checkpoint is None:
            return _put_away(directory) if checkpoints.committed(directory) else None
        for path in checkpoints.committed(directory):
            if checkpoints.step_of(path) > checkpoint.step:
                retire(path)
        remove_retired(directory)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}: it cannot be removed or renamed; move it away") from error


def _put_away(directory: Path) -> str:
    paths = (directory.with_name(f"{directory.name}-before-{n}") for n in itertools.count(1))
    path = directory.rename(next(path for path in paths if not path.exists()))
    return f"{directory} held averages of an earlier run that has no checkpoint; renamed to {path.name}"
