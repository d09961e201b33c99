"""Jobs of several processes: killed whole, by us or by a signal, and watched step by step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from diffpipe.verify import resume, subprocess_jobs


def sleeper(folder: Path) -> str:
    """In the interpreter's place: says where it was put, and sleeps."""
    program = folder / "sleeper"
    program.write_text("#!/bin/sh\necho $RANK of $WORLD_SIZE with $OMP_NUM_THREADS: $@\nsleep 600\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_kills_the_trainings(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_jobs.sys, "executable", sleeper(tmp_path))
    before = signal.getsignal(number)
    ended, started = resume.exit_on_signals(), subprocess_jobs.SubprocessJob(["train"], 2, tmp_path / "log")
    with pytest.raises(SystemExit) as left, ended, started as job:  # noqa: PT012 (the sleep is cut short)
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert left.value.code == 128 + number
    assert job.status() == -signal.SIGKILL
    assert all(process.poll() is not None for process in job.processes)
    assert signal.getsignal(number) is before


def test_progress_is_read_as_it_is_written(tmp_path: Path) -> None:
    watcher, path = subprocess_jobs.StepWatcher(tmp_path), tmp_path / "seen" / "rank-00000.jsonl"
    assert watcher.look() is None
    path.parent.mkdir()
    for text, step in (('{"step": 7}\n{"st', 7), ('ep": 8}\n{"step": 9}\n', 9), ("", 9), ('{"step": 10}\n', 10)):
        with path.open("a") as file:
            file.write(text)
        assert watcher.look() == step


def test_a_job_is_gone_when_it_has_been_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_jobs.sys, "executable", sleeper(tmp_path))
    with subprocess_jobs.SubprocessJob(["train", "a.yaml"], 2, tmp_path / "log", threads=1) as job:
        while len((tmp_path / "log").read_text().splitlines()) < 2:
            assert job.status() is None
    assert job.status() == -9
    said = sorted((tmp_path / "log").read_text().splitlines())
    assert said == [f"{rank} of 2 with 1: -m diffpipe train a.yaml" for rank in range(2)]
    assert subprocess_jobs.last_lines(tmp_path / "log", 1) in said
