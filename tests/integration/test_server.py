"""The server of commands ends them as a shell and a launcher would."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.support.commands import CONFIG, HOME, TINY, diffpipe, server


@pytest.mark.parametrize(("processes", "status"), [(0, -signal.SIGSEGV), (2, 1)])
def test_a_process_killed_by_a_signal_shows_and_takes_the_others_of_its_job_along(
    tmp_path: Path, processes: int, status: int
) -> None:
    words = ["train", str(CONFIG), f"run.dir={tmp_path}", *TINY, "train.steps=100000"]
    with tempfile.TemporaryFile() as out:
        command = server().start(words, HOME, os.environ | {"OMP_NUM_THREADS": "1"}, out, out, processes)
        while not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.05)
        family = psutil.Process(command.pid).children(recursive=True)
        assert len(family) == max(processes, 1)
        family[-1].send_signal(signal.SIGSEGV)
        assert command.wait(20) == status
    assert not any(process.is_running() for process in family)


def test_a_forked_command_says_what_a_real_one_does() -> None:
    for words in (["sample", "--help"], ["sample", "/absent", "/absent"]):
        forked, real = diffpipe(*words), diffpipe(*words, real=True)
        assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)
