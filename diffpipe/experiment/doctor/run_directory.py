"""The run directory: whether this job may write there, and whether all of its machines see the same one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.experiment.preflight import unwritable_checkpoints
from diffpipe.experiment.resources import JobSize
from diffpipe.files import why_unwritable
from diffpipe.train.run_lock import lock_refusal

_IN_MEMORY = {"tmpfs", "ramfs"}
_LOCAL = _IN_MEMORY | {"overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "apfs"}


def refusals(experiment: Experiment) -> Iterator[Finding]:
    """The refusals of `train` where another job holds the run directory, or it cannot be written."""
    try:
        refusal = lock_refusal(experiment.run.path, use_lock=experiment.run.lock)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        yield Finding("error", refusal)
        return
    folder = experiment.run.checkpoints
    if (reason := why_unwritable(folder)) is not None:
        yield Finding("error", unwritable_checkpoints(folder, reason))


def not_shared(path: Path, size: JobSize, mounts: str) -> Finding | None:
    """A finding where several machines would each write to a run directory of its own.

    mounts: the text of /proc/mounts; empty where the system has none.
    """
    if size.machines == 1:
        return None
    kind = file_system(path, mounts)
    remedy = "give a run.dir on a file system that all machines share, as a checkpoint is written by all of them"
    if path.absolute().is_relative_to(tempfile.gettempdir()):
        return Finding("error", f"{path}: each of {size.machines} machines has a temporary folder of its own; {remedy}")
    if kind not in _LOCAL:
        return None
    level, where = ("error", "in the memory") if kind in _IN_MEMORY else ("warning", "on a disk")
    return Finding(level, f"{path} is {where} of this machine ({kind}), and the job is of {size.machines}; {remedy}")


def file_system(path: Path, mounts: str) -> str | None:
    """The kind of the file system that a path is on, or will be: `ext4`, `nfs4`, …; None where nothing tells."""
    kinds: dict[Path, str] = {}
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        kinds[Path(place.replace("\\040", " "))] = kind  # a later mount hides an earlier one
    real = path.resolve()
    return next((kinds[place] for place in (real, *real.parents) if place in kinds), None)
