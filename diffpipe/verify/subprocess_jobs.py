"""Training jobs as processes of their own: started as a launcher would, watched, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffpipe import plugins
from diffpipe.data.remote import allowed_bases

# What a launcher sets for the processes that it starts. A job of one process must not inherit it.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@runtime_checkable
class TrainingJob(Protocol):
    """A running training. Leaving the context kills what is left of it."""

    def status(self) -> int | None:
        """None while it runs, else its exit status."""

    def kill(self) -> None:
        """SIGKILL to all its processes at once; returns when they are gone."""

    def __enter__(self) -> TrainingJob: ...

    def __exit__(self, *_: object) -> None: ...


# Starts a training job: the arguments of `diffpipe`, the number of processes, the log that takes their output, and
# OMP_NUM_THREADS.
StartJob = Callable[[Sequence[str], int, Path, int | None], TrainingJob]


class SubprocessJob:
    """`python -m diffpipe COMMAND…` as `world` processes, with the environment that torchrun would set.

    Each process leads a session of its own, which holds its loader workers, too. threads: OMP_NUM_THREADS.
    """

    def __init__(self, command: Sequence[str], world: int, log: Path, threads: int | None = None):
        self.processes: list[subprocess.Popen[Any]] = []
        env = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        words = [sys.executable, "-m", "diffpipe", *plugins.options(), *allowed_bases.options(), *command]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        try:
            with log.open("ab") as output:
                for rank_env in rank_environments(world):
                    process = subprocess.Popen(
                        words, env=env | rank_env, stdout=output, start_new_session=True, **streams
                    )
                    self.processes.append(process)
        except BaseException:
            self.kill()
            raise

    def status(self) -> int | None:
        """None while it runs, else the first exit status that is not 0, though other processes may still run."""
        codes = [process.poll() for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    def kill(self) -> None:
        """SIGKILL to all processes at once; returns when they are gone."""
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def __enter__(self) -> SubprocessJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def rank_environments(world: int) -> list[dict[str, str]]:
    """The variables that torchrun adds for each rank of a job on one machine; none for a single process."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(world)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


class StepWatcher:
    """The step that a training is in, from the line that rank 0 appends to `seen/` as it begins a step."""

    def __init__(self, run_dir: Path):
        self.step: int | None = None
        self._path = run_dir / "seen" / "rank-00000.jsonl"
        self._offset = 0

    def look(self) -> int | None:
        """The step, counted from 0; None before the first."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            whole_lines = file.read().rpartition(b"\n")[0]
            if whole_lines:
                self._offset += len(whole_lines) + 1
                self.step = json.loads(whole_lines.rpartition(b"\n")[2])["step"]
        return self.step


def last_lines(log: Path, n: int = 12) -> str:
    """The last lines of a log. Of a progress bar, which is redrawn within its line, the last state."""
    lines = log.read_text(errors="replace").split("\n")
    return "\n".join([line.rpartition("\r")[2] for line in lines if line.strip()][-n:])
