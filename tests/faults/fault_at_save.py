"""`python -m tests.faults.fault_at_save …`: `python -m diffpipe …` with a fault in one process while it saves.

FAULT_AT_SAVE in the environment describes it, as JSON. `rank`: the process that has the fault, 0 by default. `attempt`:
only when the launcher starts it for that time, from 0; by default every time. The fault comes at the `n`-th change
(from 1) that this process makes in a directory called `folder` ("checkpoints" by default), counted after it has trained
`after_steps` steps (1 by default). A change is a call that makes, renames, syncs or removes a file there. `action` is

- "kill", the default: SIGKILL, before the change;
- "stall": the change waits for a file `go` in the run directory;
- "disk_full": from the start, no file of this process may grow beyond `n` bytes, as if the disk were full for it alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffpipe.__main__ import main
from diffpipe.train.loop import Trainer

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def act_at_change(n: int, after_steps: int, folder: str, action: Callable[[str], None]) -> None:
    """Call `action` with the path before the n-th change."""
    fsync, step = os.fsync, Trainer.train_step
    steps = changes = 0

    def count_change(path: str) -> None:
        nonlocal changes
        changes += steps >= after_steps
        if changes == n:
            action(path)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = args[0]  # or a file descriptor
        elif event in CHANGES:
            path = args[0]
            if event in {"os.remove", "os.rmdir"} and args[1] != -1:  # relative to an open folder
                path = f"{Path(f'/proc/self/fd/{args[1]}').readlink()}/{path}"
        else:
            return
        if isinstance(path, str | os.PathLike) and folder in Path(path).parts[:-1]:
            count_change(os.fspath(path))

    def watched_fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = Path(f"/proc/self/fd/{number}").readlink()
        if folder in path.parts:
            count_change(str(path))
        fsync(file)

    def watched_step(trainer: Trainer, *args: Any) -> Any:
        nonlocal steps
        result = step(trainer, *args)
        steps += 1
        return result

    os.fsync = watched_fsync
    setattr(Trainer, "train_step", watched_step)  # noqa: B010 (another signature)
    sys.addaudithook(audit)


def kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stall(path: str) -> None:
    run = Path(path[: path.index("/checkpoints/")])
    while not (run / "go").exists():
        time.sleep(0.01)


def inject_at_save(
    rank: int = 0,
    attempt: int | None = None,
    n: int = 0,
    after_steps: int = 1,
    action: str = "kill",
    folder: str = "checkpoints",
) -> None:
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if int(os.environ.get("RANK", "0")) != rank or attempt not in (None, restarts):
        return
    if action == "disk_full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    else:
        act_at_change(n, after_steps, folder, {"kill": kill, "stall": stall}[action])


if __name__ == "__main__":
    if "FAULT_AT_SAVE" in os.environ:
        inject_at_save(**json.loads(os.environ["FAULT_AT_SAVE"]))
    sys.exit(main())
