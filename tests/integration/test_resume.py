"""Promises 1 and 2 through the real command: killed and resumed at the same world size. Others: test_all_stages.py."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import psutil

from tests.support.commands import CONFIG, HOME, TINY, command, metrics, seen, tensors, train

# Dropout, micro-batches, augmentation and a loader process: all that could depend on when a run was killed.
KILLED = [
    "train.steps=70",
    "checkpoint.every=10",
    "train.record_samples=true",
    "train.accumulate=2",
    "stage.network.dropout=0.1",
    "data.flip=true",
    "data.workers=1",
]


def kill_all_at(run_dir: Path, step: int) -> int:
    """Start training on two processes, kill every process with SIGKILL once `step` is logged; the last step logged."""
    words = ["train", CONFIG, f"run.dir={run_dir}", *TINY, *KILLED]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(*words, processes=2), cwd=HOME, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as launcher:
        deadline = time.monotonic() + 500
        while True:
            assert time.monotonic() < deadline, "the step was never reached"
            assert launcher.poll() is None, "the run ended before it was killed"
            journal = run_dir / "metrics.jsonl"
            if journal.exists() and (lines := journal.read_text().splitlines()) and len(lines) >= step:
                break
            time.sleep(0.02)
        family = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        for process in family:
            process.kill()
    psutil.wait_procs(family, timeout=120)
    return len(journal.read_text().splitlines())


def test_killed_at_a_random_step_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    train(tmp_path / "straight", *KILLED, processes=2)
    step = random.SystemRandom().randrange(12, 45)
    killed = kill_all_at(tmp_path / "killed", step)
    said = train(tmp_path / "killed", *KILLED, processes=2)
    # The newest may have been in flight.
    places = [f"resuming from {tmp_path}/killed/checkpoints/step-000000{step}\n" for step in range(10, killed + 1, 10)]
    assert any(place in said for place in places[-2:])

    last = "checkpoints/step-00000070"
    straight, again = tensors(tmp_path / "straight" / last), tensors(tmp_path / "killed" / last)
    assert straight.keys() == again.keys()
    assert {name.split(".")[0] for name in straight} == {"net", "ema", "optimizer"}
    for name, tensor in straight.items():
        assert tensor.tobytes() == again[name].tobytes(), f"{name} differs after a kill at step {killed}"

    # `seen` itself requires that a step trained twice saw the same; here, that it is what the straight run saw.
    assert seen(tmp_path / "killed") == seen(tmp_path / "straight")
    assert sorted(metrics(tmp_path / "killed")) == list(range(1, 71))
    losses = [{step: line["loss"] for step, line in metrics(tmp_path / run).items()} for run in ("straight", "killed")]
    assert losses[0] == losses[1]


def test_a_finished_run_says_so_and_more_steps_go_on(tmp_path: Path) -> None:
    train(tmp_path, "train.steps=2")
    assert "trained to step 2 already" in train(tmp_path, "train.steps=2")
    assert "resuming from" in train(tmp_path, "train.steps=3")
    assert sorted(metrics(tmp_path)) == [1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over_aloud_and_all_damaged_is_no_fresh_start(tmp_path: Path) -> None:
    train(tmp_path, "train.steps=4", "checkpoint.every=2")
    shards = sorted(tmp_path.glob("checkpoints/step-*/*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\x00")
    said = train(tmp_path, "train.steps=5", "checkpoint.every=0")
    assert "warning: skipping a damaged checkpoint" in said
    assert f"resuming from {tmp_path}/checkpoints/step-00000002" in said
