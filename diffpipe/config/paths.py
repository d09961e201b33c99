"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path, with the home directory for a `~` at its start. The shell replaces it only at the start of a word.

    `~` stays where there is no such home directory.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises RuntimeError)
