"""What lies in a run's directory of checkpoints: which ones stay, which go, and what is put aside.

Names are all that counts. `step-00001000` is a checkpoint; `.tmp-step-…` one that was never committed; `.old-step-…`
one that is being removed, which takes a rename first, since a checkpoint half removed would look like a damaged one;
`damaged-step-…` one that a job found damaged and put aside. One job at a time changes
anything here (train/run_lock.py).
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.format import DAMAGED, committed, step_of
from diffpipe.train.checkpoint.read import Checkpoint, newest_valid
from diffpipe.train.distributed import Communicator

TEMPORARY, OLD = ".tmp-", ".old-"
LATEST = "latest"
"""The file that names the newest checkpoint, for people."""


def recover(directory: Path, comm: Communicator) -> tuple[Checkpoint | None, list[str]]:
    """What a job that starts goes on from, and what it should warn of. A collective, under the run's lock.

    The remains of killed jobs go, and checkpoints newer than the newest valid one are put aside. Raises UserError where
    there are checkpoints and none is valid; nothing is put aside then.
    """
    comm.raise_on_all_ranks(lambda: sweep(directory) if comm.main else None)
    found, damaged = newest_valid(directory, comm)
    moved = comm.raise_on_all_ranks(lambda: [quarantine(d.path) for d in damaged] if comm.main else [])
    places = comm.gather(moved)[0]
    return found, [f"{bad}; it is {to.name} now" for bad, to in zip(damaged, places, strict=True)]


def sweep(directory: Path) -> None:
    """Remove what killed jobs left half written or half removed. Raises UserError where that is not allowed."""
    try:
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name.startswith((f"{TEMPORARY}step-", f"{OLD}step-")):
                _remove(path)
            elif path.name == f".{LATEST}" or path.name.startswith(f".{LATEST}."):
                path.unlink()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}: cannot remove what a killed job left; do so") from error


def quarantine(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is evidence and no checkpoint any more: where it is now."""
    to = path.with_name(DAMAGED + path.name)
    for n in itertools.count(2):
        if not to.exists():
            break
        to = path.with_name(f"{DAMAGED}{path.name}-{n}")
    try:
        return path.rename(to)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: a damaged checkpoint cannot be put aside; move it away") from error


def prune(directory: Path, config: CheckpointConfig) -> None:
    """Remove all but the newest `keep_last` and those whose step is a multiple of `keep_every`."""
    for path in committed(directory)[config.keep_last :]:
        if not config.keep_every or step_of(path) % config.keep_every:
            retire(path)
    for path in directory.glob(f"{OLD}step-*"):
        # One that somebody reads (NFS) or that cannot be removed for now goes after a later save, or in `sweep`.
        with contextlib.suppress(OSError):
            _remove(path)


def retire(path: Path) -> None:
    """Take the name from a checkpoint that is to be removed."""
    old = path.with_name(f"{OLD}{path.name}")
    if old.exists():
        _remove(old)
    path.rename(old)


def _remove(path: Path) -> None:
    """A directory and all in it, or a file that has the name of one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
