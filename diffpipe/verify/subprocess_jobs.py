"""Trainings in processes of their own: started as a launcher would start them, watched, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What a launcher says to the processes it starts. A training that is started alone must not inherit it.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Job:
    """`python -m diffpipe WORDS…` as `world` processes, with the environment that torchrun would give them.

    Each has a session of its own, loader workers included, and `log` takes what all of them say. Leaving the context
    kills what is left.
    """

    def __init__(self, words: Sequence[str], world: int, log: Path, threads: int | None = None):
        self.processes: list[subprocess.Popen[Any]] = []
        env = {key: value for key, value in os.environ.items() if key not in PLACE}
        if threads is not None:
            env["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, "-m", "diffpipe", *words]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        try:
            with log.open("ab") as said:
                for place in places(world):
                    process = subprocess.Popen(command, env=env | place, stdout=said, start_new_session=True, **streams)
                    self.processes.append(process)
        except BaseException:
            self.kill()
            raise

    def status(self) -> int | None:
        """None while it runs, else its exit status: the first that is not 0, though others may still run."""
        codes = [process.poll() for process in self.processes]
        return next((code for code in codes if code), None if None in codes else 0)

    def kill(self) -> None:
        """SIGKILL to all of it at once; returns when its processes are gone."""
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


start = Job  # what starts a training: tests put something cheaper in its place


def places(world: int) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each process of a job on one machine; nothing for one alone."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(world)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


class Progress:
    """Which step a training is in, read off what its first rank records in `seen/` as it begins each step."""

    def __init__(self, run_dir: Path):
        self.step: int | None = None
        self._path = run_dir / "seen" / "rank-00000.jsonl"
        self._read = 0

    def look(self) -> int | None:
        """The step it is in, counted from 0; None before the first."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._read += len(whole) + 1
                self.step = json.loads(whole.rpartition(b"\n")[2])["step"]
        return self.step


def last_words(log: Path, lines: int = 12) -> str:
    """The last lines of a log: bars, which are redrawn within a line, at their last."""
    said = log.read_text(errors="replace").split("\n")
    return "\n".join([line.rpartition("\r")[2] for line in said if line.strip()][-lines:])
