"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.files import open_locked, release, sync


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when the block ends well and is removed when it does not.

    It lies beside `out`, in `.NAME.packing`. What a process that was killed has left there is removed first; while
    another process is alive that writes the same `out`, this one is refused. Raises UserError, of OSErrors within the
    block too.
    """
    target = out.absolute()
    home = target.parent / f".{target.name}.packing"
    folder = home / "whole"
    try:
        lock = _owned(home, out)
        try:
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"{out} exists already; remove it or give another name")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            for path in [*folder.rglob("*"), folder]:
                sync(path)
            folder.replace(target)
            sync(target.parent)
        finally:
            shutil.rmtree(home, ignore_errors=True)
            release(lock)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or change the rights") from error


def _owned(home: Path, out: Path) -> int:
    """The open lock file of `home`, which is made where it is missing. The lock is not inherited by workers."""
    while True:
        home.mkdir(parents=True, exist_ok=True)
        try:
            lock = open_locked(home / "lock")
        except FileNotFoundError:
            continue  # the previous owner removed the folder between these two lines
        if lock is None:
            raise UserError(f"{out}: another process is packing it; wait for it or give another name")
        return lock
