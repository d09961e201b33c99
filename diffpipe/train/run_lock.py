"""The lock of a run directory: two jobs in it would overwrite each other's checkpoints and logs."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.files import has_name, lock, open_regular, open_writable, why_unwritable
from diffpipe.run_folder import CHECKPOINTS, LOCK, NO_LOCKS, PRUNED, lock_holder
from diffpipe.train.distributed import Communicator

PATIENCE = 120.0
"""Seconds to wait for a lock that no process of this machine holds: NFS gives up the locks of a dead node in 90."""
_POLL = 1.0  # seconds
_INSTANT = 2.0
"""Seconds in which a process that has locked the file writes its name into it."""
_held_here: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def locked(
    folder: Path, comm: Communicator, warn: Callable[[str], object] = warnings.warn, *, use_lock: bool = True
) -> Iterator[None]:
    """Rank 0 holds the run directory's `.lock` until the job ends, in whatever way.

    warn: called on rank 0 with a sentence where it waits for a lock that may end by itself. use_lock: whether the file
    is locked; without it, two jobs in one directory are the user's care. A job that ends with a UserError before it has
    written anything removes the folders and the lock that it made. Raises UserError on all ranks where another job
    holds the lock, or where the directory cannot be written to.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    before = set(folder.iterdir()) if folder.is_dir() else set()
    patience = min(PATIENCE, comm.timeout.total_seconds() / 2)  # the other ranks wait in a collective
    with ExitStack() as stack:

        def hold() -> None:
            path = folder / LOCK
            if use_lock:
                stack.enter_context(_exclude_threads(path))
            stack.enter_context(_hold(path, warn, patience, use_lock=use_lock))

        comm.raise_on_all_ranks(lambda: hold() if comm.main else None)
        try:
            yield
        except UserError:
            if comm.main:
                with contextlib.suppress(OSError):  # not empty: another program writes there
                    _remove_unused(folder, before, made)
            raise


def lock_refusal(folder: Path, *, use_lock: bool = True) -> str | None:
    """The reason why a job could not lock the run directory now, or None. Nothing is written, and nothing waits.

    use_lock: see `locked`. Without it, a directory that cannot be written is a reason alone.
    """
    path = folder / LOCK
    if (reason := why_unwritable(folder)) is not None:
        return _unwritable(folder, reason)
    if not use_lock or not os.path.lexists(path):
        return None
    if path.resolve() in _held_here:
        return _refusal(path, _own_name())
    try:
        with FileIO(open_regular(path)) as file:
            process, holder = lock_holder(file.fileno()), _holder(file)
    except OSError as error:
        return _unlockable(path, error) if error.errno in NO_LOCKS else _unwritable(folder, error.strerror)
    if process is None:
        return None
    return _refusal(path, holder) if _is_alive(process) else _remote_refusal(path, holder)


def _remove_unused(folder: Path, before: Set[Path], made: Sequence[Path]) -> None:
    """Remove the lock and the empty folders of a job that wrote nothing else. Its lock is still held."""
    checkpoints, lock_file = folder / CHECKPOINTS, folder / LOCK
    new = set(folder.iterdir()) - before
    if not new <= {checkpoints, lock_file}:
        return
    if checkpoints in new:
        checkpoints.rmdir()
    if lock_file in new:
        lock_file.unlink()
    for place in made:
        place.rmdir()


@contextmanager
def _exclude_threads(path: Path) -> Iterator[None]:
    """Exclude another training of this process. The lock of the file would not, and closing the file would end it."""
    key = path.resolve()
    with _guard:
        if key in _held_here:
            raise UserError(_refusal(path, _own_name()))
        _held_here.add(key)
    try:
        yield
    finally:
        with _guard:
            _held_here.discard(key)


def _hold(path: Path, warn: Callable[[str], object], patience: float, *, use_lock: bool) -> FileIO:
    """The open file, locked until it is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(open_writable(path), "r+")
    except OSError as error:
        raise UserError(_unwritable(path.parent, error.strerror)) from None
    try:
        if use_lock:
            _acquire(file, path, warn, patience)
            if not has_name(file.fileno(), path):  # its holder removed it while this job waited
                file.close()
                return _hold(path, warn, patience, use_lock=use_lock)
        file.truncate(0)
        file.seek(0)
        file.write(f"{_own_name()}\n".encode())
    except OSError as error:
        file.close()
        raise UserError(f"cannot write {path} ({error.strerror}): free some space, or change the rights") from None
    except UserError:
        file.close()
        raise
    return file


def _acquire(file: FileIO, path: Path, warn: Callable[[str], object], patience: float) -> None:
    """Lock the file. Waits where the holder may be a dead node, whose lock a file server still keeps."""
    start, deadline = time.monotonic(), None
    while not _try(file, path):
        holder = _holder(file)
        # `runs prune` holds it for a moment, and has not written its name in the first instant.
        wait = patience if holder.startswith(PRUNED) else 0 if _names_its_holder(file, holder) else _INSTANT
        if time.monotonic() < start + wait:
            time.sleep(_POLL / 10)
            continue
        if _held_on_this_machine(file):
            raise UserError(_refusal(path, holder))
        if deadline is None:
            deadline = time.monotonic() + patience
            warn(
                f"{path} is locked by another machine ({holder}); if that one is dead, its lock ends soon: waiting up "
                f"to {patience:.0f} seconds"
            )
        if time.monotonic() > deadline:
            raise UserError(_remote_refusal(path, holder))
        time.sleep(_POLL)


def _names_its_holder(file: FileIO, holder: str) -> bool:
    """Whether the process that holds the lock has written its name, as far as the kernel tells."""
    process = lock_holder(file.fileno()) if sys.platform == "linux" else None
    return process is None or holder.startswith(f"process {process} on ")


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _refusal(path: Path, holder: str) -> str:
    return f"another job trains in {path.parent} ({holder}): wait for it or stop it, or give another run.dir"


def _remote_refusal(path: Path, holder: str) -> str:
    return (
        f"another job trains in {path.parent} ({holder}), on another machine, as it seems: wait for it or stop it, or "
        f"give another run.dir; where that machine is dead and the lock remains, remove {path}"
    )


def _unwritable(folder: Path, reason: str | None) -> str:
    return f"cannot write to the run directory {folder} ({reason}): give another run.dir"


def _unlockable(path: Path, error: OSError) -> str:
    return (
        f"cannot lock {path} ({error.strerror}): give a run.dir on a file system with locks, or set run.lock=false and "
        f"see to it that only one job trains there at a time"
    )


def _holder(file: FileIO) -> str:
    """The last process that has locked the file, as it called itself."""
    file.seek(0)
    return file.read(200).decode(errors="replace").strip() or "process unknown"


def _try(file: FileIO, path: Path) -> bool:
    try:
        return lock(file.fileno())  # which loader workers do not inherit
    except OSError as error:
        raise UserError(_unlockable(path, error)) from None


def _held_on_this_machine(file: FileIO) -> bool:
    """Whether a live process of this machine holds the lock, as far as the kernel tells."""
    if sys.platform != "linux":
        return True
    process = lock_holder(file.fileno())
    return process is not None and _is_alive(process)


def _is_alive(process: int) -> bool:
    """Whether this is a live process of this machine."""
    return process > 0 and Path(f"/proc/{process}").exists()
