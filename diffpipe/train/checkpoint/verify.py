"""Verify a checkpoint against its manifest, and find the newest valid one.

Damaged is what has other bytes than its manifest says. A checkpoint that cannot be read just now, or that a newer
version wrote, is not damaged: it is refused, and stays as it is.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from diffpipe.errors import UserError
from diffpipe.files import parse_json, read_regular
from diffpipe.plural import plural
from diffpipe.run_folder import DAMAGED, MANIFEST, NAME, STATE, committed, step_of
from diffpipe.train.checkpoint.format import MANIFEST_LIMIT, FileEntry, Manifest, describe
from diffpipe.train.checkpoint.state import FORMAT
from diffpipe.train.distributed import Communicator

WAITS = (0.2, 1.0, 5.0)
"""Seconds before each further attempt to read. A network file system may fail once (ESTALE) or for a moment (EIO)."""

_OTHER_THAN_SAVED = {errno.ENOENT, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EFBIG}
"""Errors that reading again does not change: nothing is there, or something else than a file, or too long a file."""

T = TypeVar("T")


class Damage(NamedTuple):
    """A checkpoint that differs from its manifest, and how."""

    path: Path
    complaint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.complaint}"


def newest_valid_path(directory: Path, comm: Communicator) -> tuple[Path | None, list[Damage]]:
    """The newest valid checkpoint, and what is wrong with each newer one. A collective. See `read.newest_valid`."""
    damaged: list[Damage] = []
    # Rank 0's list: on a shared file system, ranks may for a while see different ones.
    for path in comm.on_rank_zero(lambda: read_patiently(directory, lambda: committed(directory))):
        complaint = damage(path, comm)
        if complaint is None:
            return path, damaged
        damaged.append(Damage(path, complaint))
    quarantined = comm.on_rank_zero(lambda: read_patiently(directory, lambda: _quarantined(directory)))
    complaints = [*map(str, damaged), *(f"{path}: found damaged before" for path in quarantined)]
    if complaints:
        raise UserError(
            f"no checkpoint in {directory} is whole ({'; '.join(complaints)}); restore one from a copy, "
            f"or move the directory away to start from scratch"
        )
    return None, []


def damage(path: Path, comm: Communicator) -> str | None:
    """The first difference of the checkpoint at `path` from its manifest, or None. A collective.

    The ranks share the hashing, and rank 0 alone decides: on a shared file system, another rank may for a while see
    old files or none. Raises UserError where the checkpoint cannot be read, or is not one to trust.
    """
    complaint, files = comm.on_rank_zero(lambda: _inspect(path))
    if complaint is not None:
        return complaint
    names = sorted(files)[comm.rank :: comm.world]
    suspects = comm.gather([name for name in names if not _matches(path / name, files[name])])
    return comm.on_rank_zero(lambda: _first_altered(path, {name: files[name] for of in suspects for name in of}))


def read_patiently(path: Path, read: Callable[[], T]) -> T:
    """The result of `read`, which is tried again after each of `WAITS` where an OSError may pass.

    Raises OSError at once for what reading again does not change, and UserError where it fails to the end.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{error.filename}: {error.strerror}: a save writes none; remove it") from error
            if error.errno in _OTHER_THAN_SAVED:
                raise
            if wait is None:
                raise UserError(
                    f"{error.filename or path}: cannot be read just now ({error.strerror}), which does not mean that "
                    f"it is damaged, and nothing was changed; look at the disk and at the rights, and run the same "
                    f"command again; or move {path} away to do without it"
                ) from error
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _quarantined(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith(DAMAGED))
    except FileNotFoundError:
        return []


def _inspect(path: Path) -> tuple[str | None, dict[str, FileEntry]]:
    """The first difference that shows before any hashing, or None, and the files that the manifest lists."""
    try:
        text = read_patiently(path, lambda: read_regular(path / MANIFEST, limit=MANIFEST_LIMIT))
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})", {}
    try:
        tree = parse_json(text)
        _require_known_format(path, tree)
        manifest = Manifest.model_validate_json(text)
    except UserError:
        raise
    except ValueError:
        return f"{MANIFEST} is not what a save writes", {}
    if not NAME.fullmatch(path.name) or step_of(path) != manifest.step:
        return f"its {MANIFEST} is of step {manifest.step}", {}
    try:
        sizes = read_patiently(path, lambda: {p.name: p.lstat().st_size for p in path.iterdir() if p.name != MANIFEST})
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})", {}
    return _first_difference(manifest.files, sizes), manifest.files


def _require_known_format(path: Path, manifest: object) -> None:
    """Raise UserError where a newer version wrote the checkpoint: it is not damaged."""
    written = manifest.get("format") if isinstance(manifest, dict) else None
    if type(written) is int and written > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of diffpipe (format {written}; this version reads up to {FORMAT}); "
            f"update diffpipe, or take another checkpoint"
        )


def _first_difference(expected: dict[str, FileEntry], present: dict[str, int]) -> str | None:
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in {MANIFEST}"
        if expected[name].size != present[name]:
            return f"{name} has {plural(present[name], 'byte')} instead of {expected[name].size}"
    return None if STATE in expected else f"{MANIFEST} does not list {STATE}"


def _matches(path: Path, entry: FileEntry) -> bool:
    try:
        return describe(path) == entry
    except OSError:
        return False  # rank 0 reads it again


def _first_altered(path: Path, suspects: dict[str, FileEntry]) -> str | None:
    """The first of these files that is not what the manifest says, as rank 0 reads it, or None."""
    for name, entry in suspects.items():
        try:
            if read_patiently(path, lambda name=name: describe(path / name)) != entry:
                return f"{name} has been altered since it was saved (sha256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
