"""Jobs that come back in another size, and jobs whose launcher starts them again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.commands import CONFIG, HOME, metrics, seen, tensors
from tests.support.training_jobs import SMALL, steps, trains, unharmed

# Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
CALM = ["train.accumulate=2", "train.precision=fp32", "optimizer.eps=1e-3"]


@pytest.mark.slow
def test_two_three_one_and_four_processes_with_accumulation_train_as_one(tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    trains(straight, *CALM, "train.steps=8")
    for end, processes in ((2, 2), (4, 3), (6, 0), (8, 4)):
        said = trains(run, *CALM, f"train.steps={end}", processes=processes)
        assert f"resuming from {run}/checkpoints/step-{end - 2:08d}" in said or end == 2
    assert seen(run) == seen(straight)
    for step, line in metrics(straight).items():
        assert metrics(run)[step]["loss"] == pytest.approx(line["loss"], rel=1e-4), step
    expected, ours = (tensors(path / "checkpoints" / "step-00000008") for path in (straight, run))
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name] == pytest.approx(tensor, abs=1e-3), name


@pytest.mark.slow
def test_a_rank_that_is_killed_is_restarted_by_the_launcher_and_nothing_shows(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    words = ["train", str(CONFIG), f"run.dir={tmp_path}", *SMALL, "train.steps=6", "checkpoint.every=2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch/cpu.yaml")]
    settings = ["--num_processes", "2", "--main_process_port", "0", "--max_restarts", "1", "--monitor_interval", "0.2"]
    fate = '{"rank": 1, "n": 1, "attempt": 0, "trained": 4}'
    with subprocess.Popen(
        [*launch, *settings, "-m", "tests.faults.fault_at_save", *words],
        cwd=HOME,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FATE": fate},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            _, said = launcher.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
                process.kill()
            raise
    assert launcher.returncode == 0, said
    assert f"resuming from {tmp_path}/checkpoints/step-00000002" in said
    assert steps(tmp_path) == [4, 6]
    unharmed(tmp_path, straight(2), 6)
