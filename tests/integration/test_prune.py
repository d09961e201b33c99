"""Pruning beside trainings: one that runs is left alone, and one that starts meanwhile is not disturbed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.commands import CONFIG, HOME, TINY, command, diffpipe, metrics, succeeds, train

SMALL = ["data.resolution=8", "data.workers=0", "sample.every=0", "eval.every=0", "checkpoint.every=1"]


def prune(folder: Path, *words: str) -> dict:
    done = diffpipe("runs", "prune", folder, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_in_progress_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = command("train", CONFIG, *TINY, *SMALL, f"run.dir={run}", "train.steps=100000")
    with subprocess.Popen(words, cwd=HOME, stderr=subprocess.DEVNULL) as job:
        try:
            while not (run / "checkpoints" / "latest").exists():
                assert job.poll() is None
                time.sleep(0.05)
            for _ in range(3):
                document = prune(tmp_path, "--yes")
                assert document["removable"] == []
                assert document["notes"] == [f"{run} is left as it is: a job trains in it"]
            (status,) = json.loads(diffpipe("status", tmp_path, "--json").stdout)["runs"]
            assert (status["state"], status["process"]) == ("running", job.pid)
        finally:
            job.terminate()
        assert job.wait(120) == 75
    (status,) = json.loads(diffpipe("status", tmp_path, "--json").stdout)["runs"]
    assert (status["state"], status["reason"]) == ("stopped", "by SIGTERM")


@pytest.mark.slow
def test_trainings_that_start_while_runs_are_pruned_are_not_disturbed(tmp_path: Path) -> None:
    run, ended = tmp_path / "run", threading.Event()
    words = ["train", CONFIG, f"run.dir={run}", *TINY, *SMALL, "train.steps=4", "checkpoint.keep_last=4", "--json"]
    trained = json.loads(diffpipe(*words).stdout)
    assert (trained["run"], trained["step"], trained["signal"]) == (str(run), 4, None)
    removed: list[str] = []

    def prune_again_and_again() -> None:
        while not ended.is_set():
            removed.extend(entry["path"] for entry in prune(tmp_path, "--yes", "--keep-last", "2")["removable"])

    pruning = threading.Thread(target=prune_again_and_again)
    pruning.start()
    try:
        for steps in (6, 8, 10):
            train(run, *SMALL, f"train.steps={steps}", "checkpoint.keep_last=4")
    finally:
        ended.set()
        pruning.join()
    assert removed
    assert sorted(metrics(run)) == list(range(1, 11))
    succeeds("sample", run, tmp_path / "samples", "--n", 1)
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"step-00000010", "step-00000009", "latest"} <= left
    assert not [name for name in left if name.startswith(".")]
