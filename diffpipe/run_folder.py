"""The run directory: the names of what lies in it, and the process that trains there. Nothing here imports torch."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from diffpipe.files import open_regular

_MOST = 1 << 20
CONFIG = "config.yaml"
METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
LOCK = ".lock"
CHECKPOINTS, SNAPSHOTS = "checkpoints", "ema"
NAME = re.compile("step-[0-9]+")
"""The name of a checkpoint."""
MANIFEST = "manifest.json"
"""The file of a checkpoint that lists its other files."""
STATE = "state.json"
"""The file of a checkpoint that holds its config and its place in the data."""
TEMPORARY, OLD, DAMAGED = ".tmp-", ".old-", "damaged-"
"""The prefixes of a checkpoint that was never committed, of one that is being removed, and of a quarantined one."""
PRUNED = ".pruned-"
"""The prefix of what `diffpipe runs prune` removes; its lock begins with it, too."""
LATEST = "latest"
"""The file that names the newest checkpoint, for people."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""The errors of a file system that has no locks."""


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory or a checkpoint."""
    return (path / MANIFEST).exists() or (path / CHECKPOINTS).is_dir()


def step_name(step: int) -> str:
    """The name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def committed(directory: Path) -> list[Path]:
    """The committed checkpoints under `directory`, newest (highest step) first. Damaged ones are among them.

    Raises OSError where the directory cannot be read: it may hold checkpoints.
    """
    try:
        with os.scandir(directory) as entries:
            paths = [Path(entry.path) for entry in entries if NAME.fullmatch(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(paths, key=lambda p: (step_of(p), p.name), reverse=True)


def lock_holder(descriptor: int) -> int | None:
    """The process that holds the record lock of an open file, or None. It is only looked at: nothing is locked.

    0 or a negative number: a process of another machine or of another container. Linux only.
    """
    layout = "hhqqi4x"  # struct flock: type, whence, start, length, process
    answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    kind, _, _, _, process = struct.unpack(layout, answer)
    return None if kind == fcntl.F_UNLCK else process


def holder(path: Path) -> tuple[int | None, str | None]:
    """The process that holds the lock (0: of another machine, as it seems), and its host by its own words."""
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        return None, None
    try:
        process = lock_holder(descriptor)
        words = os.read(descriptor, 200).decode(errors="replace").split()  # process 4711 on host
    finally:
        os.close(descriptor)
    return process, words[-1] if len(words) == 4 else None


def read_head(path: Path) -> str:
    """The first MiB of a text file, such as a config.yaml. Raises OSError."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        return file.read(_MOST).decode(errors="replace")


def config_value(config: str, section: str, key: str) -> str | None:
    """The value of a key of a section in a config.yaml as a run writes it. A YAML parser would take 20 ms a file."""
    found = re.search(rf"^{section}:\n(?:[ -].*\n)*?  {key}: (\S+)$", config, re.MULTILINE)
    return None if found is None else found[1]
