"""The lock of a run directory: two jobs in it would overwrite each other's checkpoints and logs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from diffpipe.errors import UserError
from diffpipe.files import lock
from diffpipe.train.distributed import Communicator


@contextmanager
def locked(folder: Path, comm: Communicator) -> Iterator[None]:
    """Rank 0 holds the run directory's `.lock` until the job ends, in whatever way.

    Raises UserError on all ranks where another job holds it, or where the directory cannot be written to.
    """
    with ExitStack() as stack:
        comm.raise_on_all_ranks(lambda: stack.enter_context(_hold(folder / ".lock")) if comm.main else None)
        yield


def _hold(path: Path) -> BinaryIO:
    """The open file, locked until it is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        place = path.parent
        raise UserError(f"cannot write to the run directory {place} ({error.strerror}): give another run.dir") from None
    try:
        locked = lock(file.fileno())  # which loader workers do not inherit
    except OSError as error:
        file.close()
        raise UserError(f"cannot lock {path} ({error.strerror}): give a run.dir on another file system") from None
    if not locked:
        file.seek(0)
        holder = file.read().decode(errors="replace").strip()
        file.close()
        raise UserError(
            f"another job trains in {path.parent} ({holder or 'process unknown'}): wait for it or stop it, or give "
            "another run.dir"
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    file.flush()
    return file
