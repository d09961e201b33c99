"""`python -m tests.faults.fault_at_save …`: `python -m diffpipe …` with a fault in one process while it saves.

FATE in the environment says which, as JSON, and `rank` who has it (0 by default; with `attempt`, only when the launcher
starts it for that time, from 0). It comes at the `n`-th (from 1) thing that this process does to what lies in a
directory `checkpoints`, counted from the first after it has trained `trained` steps (1 by default). Things are all that
make, rename, sync or remove a file there. `deed` is

- "die", the default: SIGKILL, before the thing is done;
- "stall": the thing waits until there is a file `go` in the run directory;
- "full": from the start, no file of this process may grow beyond `n` bytes, as if it alone had a full disk.
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


def watch(n: int, trained: int, deed: Callable[[str], None]) -> None:
    """Call `deed` with the path, before it is changed, at the n-th change."""
    fsync, step = os.fsync, Trainer.train_step
    steps = changes = 0

    def changed(path: str) -> None:
        nonlocal changes
        changes += steps >= trained
        if changes == n:
            deed(path)

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = args[0]  # or the number of a file that is open
        elif event in CHANGES:
            path = args[0]
            if event in {"os.remove", "os.rmdir"} and args[1] != -1:  # relative to a folder that is open
                path = f"{Path(f'/proc/self/fd/{args[1]}').readlink()}/{path}"
        else:
            return
        if isinstance(path, str | os.PathLike) and "checkpoints" in Path(path).parts[:-1]:
            changed(os.fspath(path))

    def watched_fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = Path(f"/proc/self/fd/{number}").readlink()
        if "checkpoints" in path.parts:
            changed(str(path))
        fsync(file)

    def watched_step(trainer: Trainer, *args: Any) -> Any:
        nonlocal steps
        done = step(trainer, *args)
        steps += 1
        return done

    os.fsync = watched_fsync
    setattr(Trainer, "train_step", watched_step)  # noqa: B010 (another signature)
    sys.addaudithook(heard)


def die(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stall(path: str) -> None:
    run = Path(path[: path.index("/checkpoints/")])
    while not (run / "go").exists():
        time.sleep(0.01)


def meet(rank: int = 0, attempt: int | None = None, n: int = 0, trained: int = 1, deed: str = "die") -> None:
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if int(os.environ.get("RANK", "0")) != rank or attempt not in (None, restarts):
        return
    if deed == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    else:
        watch(n, trained, {"die": die, "stall": stall}[deed])


if __name__ == "__main__":
    if "FATE" in os.environ:
        meet(**json.loads(os.environ["FATE"]))
    sys.exit(main())
