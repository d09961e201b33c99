"""Files and directories that may be removed from the runs below a folder, and their removal.

Only what a run is known to need no more: checkpoints beyond those that are kept, and what killed jobs have left. A run
that trains is never touched. Neither are the newest valid checkpoints, which a resume and an export read, snapshots of
averages, nor what another run here or beside the folder has pinned.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffpipe.errors import UserError
from diffpipe.experiment.find_runs import find_runs
from diffpipe.files import open_locked
from diffpipe.run_folder import (
    CHECKPOINTS,
    CONFIG,
    DAMAGED,
    LOCK,
    OLD,
    PRUNED,
    SNAPSHOTS,
    STATE,
    TEMPORARY,
    committed,
    config_value,
    holder,
    read_head,
    step_of,
)

_FEWEST = 2
"""Valid checkpoints that stay in any case."""
_BESIDE = 2
"""The depth to which runs beside the folder are searched: they may need checkpoints of those in it."""
_TRAINS = "a job trains in it"
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_UNFINISHED_FILE = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""The name of a file that `atomic_file` has not finished."""
_OLD_FILE = 3600
"""Seconds after which nobody is writing such a file any more."""


class Removable(NamedTuple):
    """A file or directory that may go, its size, and why."""

    path: Path
    bytes: int
    reason: str


class NeededCheckpoint(NamedTuple):
    """An old checkpoint that stays, and a run that needs it: its codec, its guide, its initial weights."""

    path: Path
    by: Path


class PrunableRun(NamedTuple):
    """A run, and what may go.

    left: why nothing in it is touched. needed: the old checkpoints that other runs need. checkpoints: those that it had
    at that moment. complaints: on what could not be removed.
    """

    run: Path
    removable: Sequence[Removable] = ()
    left: str | None = None
    needed: Sequence[NeededCheckpoint] = ()
    checkpoints: Sequence[Path] = ()
    complaints: Sequence[str] = ()


def prunable_runs(folder: Path, keep_last: int | None = None) -> list[PrunableRun]:
    """The runs below a folder, with what may go.

    keep_last: the newest valid checkpoints that stay, 2 or more; None: as the run's config says. Where a directory
    cannot be read, all checkpoints stay: a run in it may need them. Raises UserError.
    """
    if keep_last is not None and keep_last < _FEWEST:
        raise UserError(f"--keep-last {keep_last}: give {_FEWEST} or more, since a disk can lose part of the newest")
    configs: dict[Path, str] = {}
    unread: dict[Path, str] = {}
    for path, is_run, error in find_runs(folder):
        if error is not None:
            unread[path] = error
        elif is_run:
            try:
                configs[path] = read_head(path / CONFIG)
            except FileNotFoundError:
                continue
            except OSError as unreadable:
                unread[path] = str(unreadable.strerror)
    beside = [place.path for place in find_runs(folder.absolute().parent, _BESIDE) if place.is_run]
    pinned = _pinned(beside, {}) | _pinned([*configs], unread)
    runs = [run for run, config in configs.items() if config_value(config, "train", "steps")]
    why = "and may need checkpoints of the others, which stay; make it readable, or give a folder without it"
    return [
        *(PrunableRun(path, left=f"it cannot be read ({reason}), {why}") for path, reason in unread.items()),
        *(_prunable(run, configs[run], keep_last, None if unread else pinned) for run in runs if run not in unread),
    ]


def _pinned(runs: Sequence[Path], unread: dict[Path, str]) -> dict[str, Path]:
    """The hashes in the configs of runs and of their checkpoints, each with a run that names it.

    unread: gets the runs that cannot be read, with the reason.
    """
    pinned: dict[str, Path] = {}
    for run in runs:
        try:
            for path in (run / CONFIG, *(checkpoint / STATE for checkpoint in committed(run / CHECKPOINTS))):
                with contextlib.suppress(FileNotFoundError):
                    pinned = dict.fromkeys(_HASH.findall(read_head(path)), run) | pinned
        except OSError as error:
            unread[run] = str(error.strerror)
    return pinned


def remove(run: PrunableRun) -> PrunableRun:
    """Remove what may go of a run. Returns the run with what was removed, or why it is left as it is.

    The run is locked while its directories are renamed, which takes no time: a job that starts then waits for it.
    """
    if not run.removable:
        return run
    try:
        return _remove(run)
    except (OSError, UserError) as error:
        return PrunableRun(run.run, left=_reason(error))


def _remove(run: PrunableRun) -> PrunableRun:
    """Raises OSError, and UserError where a job has taken the run since."""
    lock = run.run / LOCK
    made = not lock.exists()
    descriptor = open_locked(lock)
    if descriptor is None:
        raise UserError(_TRAINS)
    renamed: dict[Removable, Path | None] = {}
    complaints: list[str] = []
    try:
        with contextlib.suppress(OSError):  # a full disk has no room for the name, and room is to be made
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{PRUNED} process {os.getpid()} on {socket.gethostname()}\n".encode())
        if committed(run.run / CHECKPOINTS) != run.checkpoints:
            raise UserError("a job has trained in it meanwhile; run the same command again")
        for entry in run.removable:
            try:
                renamed[entry] = _take_away(entry.path)
            except OSError as error:
                complaints.append(_reason(error))
        if made:
            lock.unlink()
    finally:
        os.close(descriptor)
    removed = []
    for entry, path in renamed.items():
        try:
            if path is not None:
                shutil.rmtree(path)
            removed.append(entry)
        except OSError as error:  # a file that is being read over NFS
            complaints.append(_reason(error))
    return run._replace(removable=removed, complaints=complaints)


def _take_away(path: Path) -> Path | None:
    """Remove a file, or rename a directory to a name that no job knows. Returns the name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return None
    return path if path.name.startswith(PRUNED) else path.rename(path.with_name(f"{PRUNED}{path.name}"))


def _prunable(run: Path, config: str, keep_last: int | None, pinned: Mapping[str, Path] | None) -> PrunableRun:
    try:
        if run.is_symlink():
            return PrunableRun(run, left="a symbolic link; give the folder that it leads to")
        if config_value(config, "run", "lock") == "false":
            return PrunableRun(run, left="run.lock=false: nothing says whether a job trains in it")
        if holder(run / LOCK)[0] is not None:
            return PrunableRun(run, left=_TRAINS)
        checkpoints = committed(run / CHECKPOINTS)
        old = [*_old_checkpoints(run, checkpoints, config, keep_last, pinned)]
        needed = [entry for entry in old if isinstance(entry, NeededCheckpoint)]
        removable = [*_leftovers(run), *(entry for entry in old if isinstance(entry, Removable))]
        return PrunableRun(run, removable, needed=needed, checkpoints=checkpoints)
    except (OSError, ValueError) as error:  # a config that was written by hand may hold no numbers
        return PrunableRun(run, left=_reason(error))


def _leftovers(run: Path) -> Iterator[Removable]:
    """The leftovers of jobs and prunes that were killed. A command that holds no lock may be writing a young file."""
    for folder in (run, run / CHECKPOINTS, run / SNAPSHOTS, run / "samples", run / "scores"):
        of_checkpoints = folder in (run / CHECKPOINTS, run / SNAPSHOTS)
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            if of_checkpoints and path.name.startswith(f"{TEMPORARY}step-"):
                yield _removable(path, "a save that was never finished")
            elif of_checkpoints and path.name.startswith((f"{OLD}step-", PRUNED)):
                yield _removable(path, "an old checkpoint that was being removed")
            elif _UNFINISHED_FILE.fullmatch(path.name) and _is_old_file(path):
                yield _removable(path, "a file that was never finished")


def _is_old_file(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _OLD_FILE


def _old_checkpoints(
    run: Path, checkpoints: Sequence[Path], config: str, keep_last: int | None, pinned: Mapping[str, Path] | None
) -> Iterator[Removable | NeededCheckpoint]:
    """Checkpoints older than the newest valid ones that stay, and those that were found damaged before."""
    damaged = sorted((run / CHECKPOINTS).glob(f"{DAMAGED}step-*"))
    keep = keep_last or max(_FEWEST, int(config_value(config, "checkpoint", "keep_last") or _FEWEST))
    if pinned is None or (run / CHECKPOINTS).is_symlink() or (len(checkpoints) <= keep and not damaged):
        return
    from diffpipe.train.checkpoint import manifest_sha256  # noqa: PLC0415 (imports torch)
    from diffpipe.train.checkpoint.verify import damage  # noqa: PLC0415
    from diffpipe.train.distributed import Communicator  # noqa: PLC0415

    valid, older = 0, iter(checkpoints)
    for path in older:
        valid += damage(path, Communicator()) is None
        if valid == keep:
            break
    if valid >= _FEWEST:
        yield from (_removable(path, "found damaged by a job") for path in damaged)
    every = int(config_value(config, "checkpoint", "keep_every") or 0)
    for path in older:
        if (not every or step_of(path) % every) and not path.is_symlink():
            # One whose manifest cannot be read just now may be pinned: it raises OSError, and the run is left.
            by = pinned.get(manifest_sha256(path) or "")
            reason = f"an old checkpoint: {keep} newer ones are whole"
            yield _removable(path, reason) if by is None else NeededCheckpoint(path, by)


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)


def _removable(path: Path, reason: str) -> Removable:
    if path.is_symlink() or not path.is_dir():
        return Removable(path, path.lstat().st_size, reason)
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return Removable(path, sum(file.lstat().st_size for file in files), reason)
