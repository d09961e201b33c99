"""Things that a stranger, or another file system, puts in the place of a plain file."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest


def plant(kind: str, path: Path, victim: Path) -> None:
    """Something that is not the file that was meant, under its name."""
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(victim.with_name("created"))
        case "device":
            path.symlink_to("/dev/zero")
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))


def without_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no extended attributes."""

    def unsupported(*_: object) -> bytes:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "getxattr", unsupported)
    monkeypatch.setattr(os, "setxattr", unsupported)
