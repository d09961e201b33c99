"""Files that cannot be read just now, as after the restart of a file server."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def make_stale(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Opening the file fails with ESTALE, a stale handle of NFS, until the end of the test."""
    opened = os.open

    def stale(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path) == str(file):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", stale)
