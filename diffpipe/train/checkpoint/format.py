"""The files of a checkpoint: their names, and the manifest with their sizes and hashes."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, Field

from diffpipe.files import sha256_of
from diffpipe.train.checkpoint.state import FORMAT

MANIFEST = "manifest.json"
STATE = "state.json"
DAMAGED = "damaged-"
"""The prefix of a quarantined checkpoint's name."""
NAME = re.compile("step-[0-9]+")


class FileEntry(BaseModel, extra="forbid", strict=True):
    """The size and hash of one file."""

    size: int
    sha256: str


class Manifest(BaseModel, extra="forbid", strict=True):
    """The list of a checkpoint's files, by name. It is the last file to be written."""

    format: int = Field(ge=1, le=FORMAT)
    step: int = Field(ge=0)
    files: dict[str, FileEntry]


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def committed(directory: Path) -> list[Path]:
    """The committed checkpoints under `directory`, newest (highest step) first. Damaged ones are among them."""
    if not directory.is_dir():
        return []
    paths = (p for p in directory.iterdir() if NAME.fullmatch(p.name) and p.is_dir())
    return sorted(paths, key=lambda p: (step_of(p), p.name), reverse=True)


def manifest_sha256(path: Path) -> str | None:
    """The manifest's hash, which identifies the checkpoint at `path`; None where it cannot be read."""
    try:
        return sha256_of(path / MANIFEST)
    except OSError:
        return None


def describe(path: Path) -> FileEntry:
    """The size and sha256 of a file."""
    return FileEntry(size=path.stat().st_size, sha256=sha256_of(path))
