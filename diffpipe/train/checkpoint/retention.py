"""The directory of a run's checkpoints: which ones are kept, removed, or quarantined.

A name tells what an entry is. `step-00001000` is a checkpoint. `.tmp-step-…` was never committed. `.old-step-…` is
being removed: it is renamed first, since a partly removed checkpoint would look damaged. `damaged-step-…` was found
damaged. Only the job that holds the run's lock (train/run_lock.py) changes anything here.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.run_folder import DAMAGED, LATEST, OLD, TEMPORARY, committed, step_of
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.read import Checkpoint, newest_valid
from diffpipe.train.distributed import Communicator


def recover(directory: Path, comm: Communicator) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that a starting job resumes from, and warnings. A collective, under the run's lock.

    Removes what killed jobs have left, and quarantines the damaged checkpoints newer than the newest valid one. Raises
    UserError, and quarantines nothing, where there are checkpoints and none is valid.
    """
    comm.on_rank_zero(lambda: sweep(directory))
    newest, damaged = newest_valid(directory, comm)
    paths = comm.on_rank_zero(lambda: [quarantine(d.path) for d in damaged])
    return newest, [f"{damage}; renamed to {path.name}" for damage, path in zip(damaged, paths, strict=True)]


def sweep(directory: Path) -> None:
    """Remove what killed jobs have left partly written or partly removed. Raises UserError where it cannot."""
    try:
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name.startswith((f"{TEMPORARY}step-", f"{OLD}step-")):
                _remove(path)
            elif path.name == f".{LATEST}" or path.name.startswith(f".{LATEST}."):
                path.unlink()
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}: cannot be removed, and a killed job has left it; remove it"
        ) from error


def quarantine(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is kept but never taken for a valid one. Returns its new path."""
    to = path.with_name(DAMAGED + path.name)
    for n in itertools.count(2):
        if not to.exists():
            break
        to = path.with_name(f"{DAMAGED}{path.name}-{n}")
    try:
        return path.rename(to)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: a damaged checkpoint cannot be renamed; move it away") from error


def prune(directory: Path, config: CheckpointConfig) -> None:
    """Remove all checkpoints but the newest `keep_last` and those whose step is a multiple of `keep_every`.

    Raises OSError.
    """
    for path in committed(directory)[config.keep_last :]:
        if not config.keep_every or step_of(path) % config.keep_every:
            retire(path)
    remove_retired(directory)


def prune_snapshots(directory: Path, keep: int) -> None:
    """Remove all snapshots of averages but the newest `keep`; 0: none is removed. Raises OSError."""
    for path in committed(directory)[keep:] if keep else ():
        retire(path)
    remove_retired(directory)


def remove_retired(directory: Path) -> None:
    """Remove what was renamed to be removed."""
    for path in directory.glob(f"{OLD}step-*"):
        # One that is being read (NFS) or cannot be removed now is removed after a later save, or by `sweep`.
        with contextlib.suppress(OSError):
            _remove(path)


def retire(path: Path) -> None:
    """Rename a checkpoint that is to be removed."""
    old = path.with_name(f"{OLD}{path.name}")
    if old.exists():
        _remove(old)
    path.rename(old)


def _remove(path: Path) -> None:
    """Remove a directory, or a file that has the name of one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
