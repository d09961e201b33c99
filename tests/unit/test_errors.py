"""Errors: the commands in them."""

from __future__ import annotations

import shlex
from pathlib import Path

from diffpipe.errors import shell_command


def test_a_command_to_paste_expands_nothing() -> None:
    path = Path("it's $(touch x) `y` ü\"")
    command = shell_command("diffpipe", "index", path)
    assert shlex.split(command) == ["diffpipe", "index", str(path)]
    assert shell_command("diffpipe", "index", "shards/a") == "diffpipe index shards/a"
