"""The files of a checkpoint: the manifest with their sizes and hashes."""

from __future__ import annotations

import errno
from pathlib import Path

from pydantic import BaseModel, Field

from diffpipe.files import NOT_A_FILE, sha256_of
from diffpipe.run_folder import MANIFEST
from diffpipe.train.checkpoint.state import FORMAT

MANIFEST_LIMIT, STATE_LIMIT = 1 << 26, 1 << 28
"""The most bytes that the two JSON files may have."""


class FileEntry(BaseModel, extra="forbid", strict=True):
    """The size and hash of one file."""

    size: int
    sha256: str


class Manifest(BaseModel, extra="forbid", strict=True):
    """The list of a checkpoint's files, by name. It is the last file to be written."""

    format: int = Field(ge=1, le=FORMAT)
    step: int = Field(ge=0)
    files: dict[str, FileEntry]


def manifest_sha256(path: Path) -> str | None:
    """The manifest's hash, which identifies the checkpoint at `path`; None where there is no file. Raises OSError."""
    try:
        return sha256_of(path / MANIFEST, follow_links=False)
    except OSError as error:
        if error.errno in NOT_A_FILE | {errno.ENOENT}:
            return None
        raise


def describe(path: Path) -> FileEntry:
    """The size and sha256 of a file. Raises OSError where it is none, a symbolic link included."""
    return FileEntry(size=path.lstat().st_size, sha256=sha256_of(path, follow_links=False))
