"""The runs below a folder, and the directories there that hold none."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from diffpipe.errors import UserError
from diffpipe.run_folder import CHECKPOINTS, CONFIG, EVENTS, LOCK, METRICS, SNAPSHOTS

_SIGNS = {CHECKPOINTS, CONFIG, EVENTS, LOCK, METRICS}
_OF_A_RUN = {CHECKPOINTS, SNAPSHOTS, "samples", "scores", "seen", "tensorboard", "wandb", "mlruns"}
"""Directories of a run that hold no other runs."""
_DEEPEST = 30


class Place(NamedTuple):
    """A directory that looks like a run, or the top of a tree without runs. error: why it cannot be read."""

    path: Path
    is_run: bool
    error: str | None = None


def find_runs(folder: Path, depth: int = _DEEPEST) -> list[Place]:
    """The runs below a folder, itself included, in alphabetical order, and the directories without any.

    depth: of the directories below the folder that are searched.

    Runs below a run are found, too. A symbolic link is followed to a run, and not searched: it may lead anywhere. No
    run comes twice. Hidden directories are left out. Raises UserError where there is no such folder.
    """
    if not folder.is_dir():
        what = "a file, and no folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder that holds your runs")
    places = _search(folder, set(), depth)
    return sorted(place for place in places if place.is_run or place.error or place.path != folder)


def _search(folder: Path, seen: set[tuple[int, int]], depth: int, *, link: bool = False) -> list[Place]:
    """The places in this directory: itself where it is a run or where nothing below it is one."""
    try:
        status = folder.stat()
        signs, folders = _listing(folder)
    except FileNotFoundError:  # removed meanwhile
        return []
    except OSError as error:
        return [] if link else [Place(folder, is_run=False, error=error.strerror)]
    is_run = CHECKPOINTS in signs or METRICS in signs or (CONFIG in signs and (LOCK in signs or EVENTS in signs))
    if (status.st_dev, status.st_ino) in seen or (link and not is_run):
        return []
    seen.add((status.st_dev, status.st_ino))
    below: list[Place] = []
    # A run comes under its own name rather than that of a link beside it.
    for name, is_link in sorted(folders.items(), key=lambda item: (item[1], item[0])) if depth and not link else ():
        if not (is_run and name in _OF_A_RUN):
            below += _search(folder / name, seen, depth - 1, link=is_link)
    runs = [place for place in below if place.is_run or place.error]
    if is_run:
        return [Place(folder, is_run=True), *runs]
    return below if runs else [Place(folder, is_run=False)]


def _listing(folder: Path) -> tuple[set[str], dict[str, bool]]:
    """The names here that are signs of a run; and the directories, with whether each is a symbolic link."""
    signs, folders = set(), {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in _SIGNS:
                signs.add(entry.name)
            if not entry.name.startswith("."):
                with contextlib.suppress(OSError):  # a link to itself
                    if entry.is_dir():
                        folders[entry.name] = entry.is_symlink()
    return signs, folders
