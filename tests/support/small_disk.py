"""A file system of a few megabytes, to fill and to make read-only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path):
        self.path = path
        self.run = path / "run"
        self._ballast = path / "ballast"

    def fill(self, free: int) -> None:
        """Leave so many bytes free."""
        self.make_room()
        disk = os.statvfs(self.path)
        self._ballast.write_bytes(b"\0" * (disk.f_bavail * disk.f_frsize - free))

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True, capture_output=True)

    def files(self) -> list[str]:
        """The files on it, hidden ones too, but for the one that fills it."""
        paths = [path for path in self.path.rglob("*") if path.is_file() and path != self._ballast]
        return sorted(str(path.relative_to(self.path)) for path in paths)


@contextlib.contextmanager
def mounted_disk(path: Path) -> Iterator[Disk]:
    """Mount one at `path`. The test is skipped where mounting is not permitted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
