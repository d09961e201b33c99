"""Jobs that resume with another number of processes, and jobs that the launcher restarts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.commands import CONFIG, HOME, metrics, seen, tensors
from tests.support.training_jobs import SMALL, assert_equals_uninterrupted, checkpoint_steps, train_to_end

# Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
CALM = ["train.accumulate=2", "train.precision=fp32", "optimizer.eps=1e-3"]


@pytest.mark.slow
def test_two_three_one_and_four_processes_with_accumulation_train_as_one(tmp_path: Path) -> None:
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    train_to_end(uninterrupted, *CALM, "train.steps=8")
    for end, processes in ((2, 2), (4, 3), (6, 0), (8, 4)):
        stderr = train_to_end(run, *CALM, f"train.steps={end}", processes=processes)
        assert f"resuming from {run}/checkpoints/step-{end - 2:08d}" in stderr or end == 2
    assert seen(run) == seen(uninterrupted)
    for step, line in metrics(uninterrupted).items():
        assert metrics(run)[step]["loss"] == pytest.approx(line["loss"], rel=1e-4), step
    expected, actual = (tensors(path / "checkpoints" / "step-00000008") for path in (uninterrupted, run))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name] == pytest.approx(tensor, abs=1e-3), name


@pytest.mark.slow
def test_a_job_that_the_launcher_restarts_after_a_kill_resumes_exactly(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    words = ["train", str(CONFIG), f"run.dir={tmp_path}", *SMALL, "train.steps=6", "checkpoint.every=2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch/cpu.yaml")]
    settings = ["--num_processes", "2", "--main_process_port", "0", "--max_restarts", "1", "--monitor_interval", "0.2"]
    fault_at_save = '{"rank": 1, "n": 1, "attempt": 0, "after_steps": 4}'
    with subprocess.Popen(
        [*launch, *settings, "-m", "tests.faults.fault_at_save", *words],
        cwd=HOME,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FAULT_AT_SAVE": fault_at_save},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            _, stderr = launcher.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
                process.kill()
            raise
    assert launcher.returncode == 0, stderr
    assert f"resuming from {tmp_path}/checkpoints/step-00000002" in stderr
    assert checkpoint_steps(tmp_path) == [4, 6]
    assert_equals_uninterrupted(tmp_path, uninterrupted(2), 6)
