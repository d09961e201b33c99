"""`verify-resume` calls an exact trainer exact, and a broken one not.

The trainings that it starts here are forks of the command server. What starts them for a user has unit tests.
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
from diffpipe.errors import UserError
from diffpipe.verify import resume
from diffpipe.verify.resume_plan import ResumePlan
from diffpipe.verify.verdict import ResumeVerdict, check_bits
from tests.support.commands import CONFIG, HOME, TINY, server
from tests.support.stage_cases import CASES, EDM

# Enough steps that the kills, which the seed draws, come long before the end on a slow machine, too.
SMALL = [*TINY, "data.resolution=8", "data.workers=0"]
STEPS = 60


class ForkedJob:
    """A training job that is forked from the command server."""

    def __init__(
        self, command: Sequence[str], world: int, log: Path, threads: int | None = None, module: str = "diffpipe"
    ):
        assert threads == 1
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("ab") as output:
            self._command = server().start(command, HOME, env, output, output, world if world > 1 else 0, module)
        parent = psutil.Process(self._command.pid)
        self._processes = [parent, *parent.children(recursive=True)]
        self._status: int | None = None

    def status(self) -> int | None:
        if self._status is None and select.select([self._command._status], [], [], 0)[0]:
            self._status = self._command.wait(1)
        return self._status

    def kill(self) -> None:
        for process in self._processes:
            if process.is_running():
                process.kill()
        psutil.wait_procs(self._processes, timeout=120)
        if self._status is None:
            self._status = self._command.wait(1)

    def __enter__(self) -> ForkedJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def verify(
    *overrides: str,
    worlds: str,
    config: Path = CONFIG,
    out: Path | None = None,
    steps: int = STEPS,
    kills: int | None = None,
    **job: str,
) -> ResumeVerdict:
    """The verdict on trainings that are forked. job: options of ForkedJob."""
    words = [*(SMALL if config == CONFIG else ()), "checkpoint.async=false", *overrides]
    plan = ResumePlan.make(str(config), words, steps=steps, worlds=worlds, kills=kills, seed=0)
    return resume.verify(plan, out, start=functools.partial(ForkedJob, **job))


def test_the_trainer_is_exact_and_elastic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = verify(worlds="1,2", out=tmp_path / "out")
    assert result.exact
    lines = result.text().splitlines()
    assert lines[-1] == "verdict: exact and elastic"
    assert len(lines) <= 14
    assert all(line.partition(": ")[1] for line in lines)
    assert "killed in step" in capsys.readouterr().err
    # Two kills at the world sizes in turn, and one at a single world size, as asked.
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    worlds = {
        name: [(kill["world"], kill["next_world"]) for kill in run["kills"]] for name, run in verdict["runs"].items()
    }
    assert worlds == {"uninterrupted-1": [], "uninterrupted-2": [], "elastic": [(1, 2), (2, 1)], "control": [(2, 2)]}
    for run in verdict["runs"].values():
        for kill in run["kills"]:
            assert kill["step"] >= kill["planned_step"]
            assert kill["step"] > kill["resumed_from"] > 0
    assert verdict["checks"]["same samples"]["repeated_steps"] > 0
    assert verdict["checks"]["same bits"]["tensors"] > 100
    # The run that changed its world size does not have the same bits: there was something to compare.
    assert 0 < verdict["checks"]["weights"]["deviation"] < 1e-3
    assert (tmp_path / "out" / "verdict.txt").read_text() == result.text() + "\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["verdict.json", "verdict.txt"]


def test_edm_with_a_transformer_is_exact_and_elastic_under_fsdp() -> None:
    """Sharded over two processes and, after a kill, over one and over two again."""
    network = "stage.network={kind: dit, patch: 2, width: 16, depth: 2, heads: 2, qk_norm: true}"
    result = verify(*EDM, network, "train.parallel=fsdp", worlds="2,1", steps=24)
    assert result.text().splitlines()[-1] == "verdict: exact and elastic"


@pytest.mark.parametrize("name", ["autoregressive", "vq, patch"])
def test_a_model_of_tokens_is_exact_and_elastic_under_fsdp(name: str) -> None:
    case = CASES[name]
    result = verify(*case.overrides(), "train.parallel=fsdp", config=case.path, worlds="2,1", steps=24)
    assert result.text().splitlines()[-1] == "verdict: exact and elastic"


@pytest.mark.parametrize(
    ("broken", "worlds", "failure"),
    [
        (
            "stream",
            "1",
            r"control: step \d+ of attempt 2 has \S+ at position \d+, and the uninterrupted run has no such",
        ),
        ("moments", "1", r"world 1, killed and resumed, differs in \d+ tensors"),
        ("resharding", "1,2", r"averages are \S+ apart in ema\.denoiser\.\S+, where the order of sums explains \S+"),
    ],
)
def test_a_broken_resume_is_not_exact(
    broken: str, worlds: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", broken)
    verdict = verify(worlds=worlds, kills=1, out=tmp_path / "out", module="tests.integration.broken_resume")
    assert not verdict.exact
    last = verdict.text().splitlines()[-1]
    assert re.match(f"verdict: NOT exact: .*{failure}", last), last
    if broken == "resharding":  # only a change of the world size goes wrong
        assert "same bits" not in last
        assert "differs" not in last
    assert (tmp_path / "out" / "runs" / "control" / "checkpoints").is_dir()  # kept, to be looked at


def test_a_training_that_fails_by_itself_is_shown_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="the training of uninterrupted-2 at world 2 failed by itself"):
        verify("data.train=/absent", worlds="2", steps=4)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("diffpipe train: error: ") and "/absent" in line for line in lines)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("different", "status"), [([], 0), (["net.a"], 1)])
def test_the_command_prints_the_verdict_and_its_exit_status_says_it(
    different: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = ResumeVerdict({"device": "cpu"}, [], [check_bits("world 1", 3, different)], elastic=False)
    monkeypatch.setattr(resume, "verify", lambda *_, **__: verdict)
    assert main(["verify-resume", str(CONFIG), *SMALL, "--worlds", "1"]) == status
    assert capsys.readouterr().out == verdict.text() + "\n"


def test_a_failed_training_is_one_line_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> ResumeVerdict:
        raise UserError("the training of control at world 1 failed by itself")

    monkeypatch.setattr(resume, "verify", fail)
    assert main(["verify-resume", str(CONFIG), *SMALL, "--worlds", "1"]) == 2
    assert capsys.readouterr().err.startswith(
        "diffpipe verify-resume: error: the training of control at world 1 failed"
    )
