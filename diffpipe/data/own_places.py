"""The places that this user named himself: where the shards of his indices lie, and what his runs were trained on.

An index or a run that somebody else made names places, too. To read them may send a request, with a secret in it, to a
host of that person's choice. So what this user writes is noted in the home directory, apart from what is handed on, by
a hash of where the file or folder lies and of what it says. A copy elsewhere, or one that says something else, is not
this user's.

Where there is no home that can be written to, nothing is noted, and an option has to name the place.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from diffpipe.data.remote.urls import is_remote
from diffpipe.files import atomic_write, open_regular, private_folder

NOT_OWN = "data.train of a run is read only where it is local and this user trained the run, in the place where it lies"
_MOST = 1 << 16  # bytes of a note


def note(owner: Path, says: str, place: str = "") -> None:
    """Note that the file or folder `owner` is this user's while it says this. place: in the user's own words."""
    with suppress(OSError, RuntimeError):
        path = _path(owner, says)
        private_folder(path.parent)
        atomic_write(path, place)


def noted(owner: Path, says: str) -> str | None:
    """The place that this user named for `owner`; None where it is not his, or says something else now."""
    with suppress(OSError, RuntimeError, ValueError):
        path = _path(owner, says)
        private_folder(path.parent)
        with os.fdopen(open_regular(path, own=True), "rb") as file:
            return file.read(_MOST).decode()
    return None


def note_run(home: Path, trained_on: str | list[str]) -> None:
    """Note that this user trains the run in `home` on these shards."""
    note(home, json.dumps(["run", trained_on]))


def may_read(home: Path, trained_on: str | list[str]) -> bool:
    """Whether the shards that the run in `home` names are local and were named by this user, not by the run alone."""
    return are_local(trained_on) and noted(home, json.dumps(["run", trained_on])) is not None


def are_local(patterns: str | list[str]) -> bool:
    """Whether none of these shards are remote."""
    return not any(is_remote(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def _path(owner: Path, says: str) -> Path:
    digest = hashlib.sha256(json.dumps([os.path.realpath(owner), says]).encode()).hexdigest()
    return Path.home() / ".cache" / "diffpipe" / "own" / digest
