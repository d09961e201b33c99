"""An output folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.files import open_locked, release, sync


@contextlib.contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A folder to write to. It becomes `out` when the block ends without an error; otherwise it is removed.

    Until then it is in `.NAME.packing` beside `out`. The remains of a killed process are removed first. While another
    process writes the same `out`, this one is refused. Raises UserError, also for OSErrors in the block.
    """
    target = out.absolute()
    parent = target.parent / f".{target.name}.packing"
    folder = parent / "whole"
    try:
        lock = _lock(parent, out)
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
            shutil.rmtree(parent, ignore_errors=True)
            release(lock)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or change the rights") from error


def _lock(folder: Path, out: Path) -> int:
    """The locked lock file in `folder`, which is created where it is missing. Workers do not inherit the lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open_locked(folder / "lock")
        except FileNotFoundError:
            continue  # the previous owner removed the folder between these two lines
        if lock is None:
            raise UserError(f"{out}: another process is packing it; wait for it or give another name")
        return lock
