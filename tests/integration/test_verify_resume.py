"""`diffpipe verify-resume`: an exact trainer is called exact, and a broken one is not.

The trainings that it starts are forks of the server of commands; what starts them for a user has unit tests.
"""

from __future__ import annotations

import functools
import json
import os
import re
import select
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from diffpipe.__main__ import main
from diffpipe.verify import subprocess_jobs
from tests.support.commands import CONFIG, HOME, TINY, server

# Enough steps that the kills, which the seed draws, come long before the end however slow the machine is just then.
SMALL = [*TINY, "data.resolution=8", "data.workers=0", "checkpoint.async=false"]
LONG = ["--steps", "60"]


class Fork:
    """A training as `jobs.Job` has it, forked from the server."""

    def __init__(
        self, words: Sequence[str], world: int, log: Path, threads: int | None = None, module: str = "diffpipe"
    ):
        assert threads == 1
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("ab") as said:
            self._command = server().start(words, HOME, env, said, said, world if world > 1 else 0, module)
        parent = psutil.Process(self._command.pid)
        self._family = [parent, *parent.children(recursive=True)]
        self._status: int | None = None

    def status(self) -> int | None:
        if self._status is None and select.select([self._command._status], [], [], 0)[0]:
            self._status = self._command.wait(1)
        return self._status

    def kill(self) -> None:
        for process in self._family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(self._family, timeout=30)
        if self._status is None:
            self._status = self._command.wait(1)

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def verify(monkeypatch: pytest.MonkeyPatch, *words: str, module: str = "diffpipe") -> int | str | None:
    monkeypatch.setattr(subprocess_jobs, "start", functools.partial(Fork, module=module))
    try:
        return main(["verify-resume", str(CONFIG), *SMALL, *words])
    except SystemExit as left:
        return left.code


def test_the_trainer_is_exact_and_elastic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(monkeypatch, *LONG, "--worlds", "1,2", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[-1] == "verdict: exact and elastic"
    assert len(lines) <= 14
    assert all(line.partition(": ")[1] for line in lines)
    assert "killed in step" in said.err
    # What is asked for is what was done: two kills, at the world sizes in turn, and one at a single world size.
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    turns = {name: [(kill["world"], kill["then"]) for kill in run["kills"]] for name, run in verdict["runs"].items()}
    assert turns == {"straight-1": [], "straight-2": [], "elastic": [(1, 2), (2, 1)], "control": [(2, 2)]}
    for run in verdict["runs"].values():
        assert all(kill["step"] >= kill["drawn"] and kill["step"] > kill["saved"] > 0 for kill in run["kills"])
    assert verdict["checks"]["same samples"]["trained_again"] > 0
    assert verdict["checks"]["same bits"]["tensors"] > 100
    # The run that changed its world size is not the straight one bit for bit: there was something to compare.
    assert 0 < verdict["checks"]["weights"]["apart"] < 1e-3
    assert (tmp_path / "out" / "verdict.txt").read_text() == said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["verdict.json", "verdict.txt"]


@pytest.mark.parametrize(
    ("how", "worlds", "complaint"),
    [
        ("stream", "1", r"control: step \d+ of attempt 2 has \S+ at position \d+, and the straight run has no such"),
        ("moments", "1", r"world 1, killed and resumed, differs in \d+ tensors"),
        ("resharding", "1,2", r"averages are \S+ apart in ema\.denoiser\.\S+, where \S+ is the order of sums"),
    ],
)
def test_a_broken_resume_is_not_exact(
    how: str,
    worlds: str,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BROKEN", how)
    words = ["--worlds", worlds, "--kills", "1", "--out", str(tmp_path / "out")]
    assert verify(monkeypatch, *LONG, *words, module="tests.integration.broken_resume") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(f"verdict: NOT exact: .*{complaint}", last), last
    if how == "resharding":  # what world size does not change is as it was
        assert "same bits" not in last
        assert "differs" not in last
    assert (tmp_path / "out" / "runs" / "control" / "checkpoints").is_dir()  # kept, to be looked at


def test_a_training_that_fails_by_itself_is_shown_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ["data.train=/absent", "--worlds", "2", "--steps", "4"]
    assert verify(monkeypatch, *words) == 2
    *shown, last = capsys.readouterr().err.splitlines()
    assert any(line.startswith("diffpipe train: error: ") and "/absent" in line for line in shown)
    assert last.startswith("diffpipe verify-resume: error: the training of straight-2 at world 2 failed by itself")
    assert not [*tmp_path.iterdir()]
