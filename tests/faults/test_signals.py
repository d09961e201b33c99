"""Asked to stop: one last checkpoint, a status that tells it from a crash, and the same command goes on exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.faults.fault_injection import MODULE, left, poisoned
from tests.support.checkpoint_tensors import consolidated
from tests.support.commands import CONFIG, HOME, command
from tests.support.training_jobs import SMALL, Job, debris, logged, steps, trains, unharmed

LONG = ("train.steps=1000", "checkpoint.every=0")
ASKED = 75  # EX_TEMPFAIL of sysexits.h: try again


def interrupted(run: Path) -> dict[str, object]:
    return json.loads((run / ".interrupted").read_text())


def goes_on(run: Path, straight: Path, end: int, *words: str, processes: int = 0) -> None:
    """The same command, but for the number of steps, goes on from the last checkpoint as if nothing had been."""
    (last,) = steps(run)[-1:]
    said = trains(run, f"train.steps={end}", "checkpoint.every=0", *words, processes=processes)
    assert f"resuming from {run}/checkpoints/step-{last:08d}" in said
    assert not (run / ".interrupted").exists()
    unharmed(run, straight, end)


def test_sigterm_to_the_launcher_ends_the_whole_job_with_one_last_checkpoint(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    words = command("train", CONFIG, f"run.dir={tmp_path}", *SMALL, *LONG, processes=2)
    words[words.index("diffpipe")] = MODULE
    env = os.environ | {"OMP_NUM_THREADS": "1", "POISON": '{"pace": 0.1}'}
    with subprocess.Popen(words, cwd=HOME, env=env, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 180
        while logged(tmp_path) < 3:
            assert time.monotonic() < deadline
            assert launcher.poll() is None, launcher.communicate()[1]
            time.sleep(0.02)
        job = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert len(job) >= 2
    _, alive = psutil.wait_procs(job, timeout=5)
    assert not alive, said
    (step,) = steps(tmp_path)
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": step}
    assert said.count(f"stopped by SIGTERM after step {step}: ") == 1, said
    assert debris(tmp_path) == []
    assert step < 22, "too slow to be compared"
    goes_on(tmp_path, straight(2), step + 2, processes=2)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_process_by_itself_stops_after_the_step_that_the_signal_falls_in(
    tmp_path: Path, number: str, straight: Callable[[int], Path]
) -> None:
    status, said = poisoned(tmp_path, *LONG, deeds=[["step", 4, 0, number]]).wait()
    assert status == ASKED, said
    assert steps(tmp_path) == [5]
    assert interrupted(tmp_path) == {"signal": number, "step": 5}
    lines = [line for line in said.splitlines() if number in line]
    last = tmp_path / "checkpoints" / "step-00000005"
    assert lines == [f"stopped by {number} after step 5: {last}; the same command resumes it"], said
    assert "Traceback" not in said
    goes_on(tmp_path, straight(0), 8)


@pytest.mark.parametrize(("rank", "number"), [(0, "SIGTERM"), (1, "SIGUSR1"), (1, "SIGINT")])
def test_two_processes_stop_together_when_one_is_asked_to(
    tmp_path: Path, rank: int, number: str, straight: Callable[[int], Path]
) -> None:
    status, said = poisoned(tmp_path, *LONG, processes=2, deeds=[["step", 4, rank, number]]).wait()
    assert (status, left(tmp_path)) == (1, {0: ASKED, 1: ASKED}), said
    assert steps(tmp_path) == [6]  # both know one step later
    assert interrupted(tmp_path) == {"signal": number, "step": 6}
    assert said.count(f"stopped by {number} after step 6: ") == 1, said
    assert "Traceback" not in said
    goes_on(tmp_path, straight(2), 8, processes=2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_of_several_micro_batches_is_stopped_after_as_a_whole(tmp_path: Path, parallel: str) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    words = (f"train.parallel={parallel}", "train.accumulate=2", "stage.network.dropout=0.1", "data.flip=true")
    trains(straight, *words, "train.steps=7", processes=2)
    status, said = poisoned(run, *LONG, *words, processes=2, deeds=[["step", 3, 1, "SIGTERM"]]).wait()
    assert (status, left(run)) == (1, {0: ASKED, 1: ASKED}), said
    assert steps(run) == [5]
    goes_on(run, straight, 7, *words, processes=2)
    ours, expected = (consolidated(where / "checkpoints" / "step-00000007") for where in (run, straight))
    assert {name: tensor.tobytes() for name, tensor in ours.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }


@pytest.mark.parametrize(("processes", "last"), [(0, 5), (2, 6)])
def test_a_signal_in_a_long_hook_is_answered_when_the_hook_is_through(
    tmp_path: Path, processes: int, last: int, straight: Callable[[int], Path]
) -> None:
    rng = ("sample.every=4", "sample.n=2")
    deeds = [["draw", 4, 0, "SIGTERM"], ["draw", 4, 0, "hold"]]
    job = poisoned(tmp_path, *LONG, *rng, processes=processes, deeds=deeds)
    job.until_step(4)
    assert steps(tmp_path) == []
    (tmp_path / "go").touch()
    status, said = job.wait()
    assert status == (1 if processes else ASKED), said
    assert set(left(tmp_path).values()) == {ASKED}
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000004.png"]
    assert steps(tmp_path) == [last]
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": last}
    goes_on(tmp_path, straight(processes), 8, processes=processes)


@pytest.mark.parametrize(("processes", "last"), [(0, 7), (2, 8)])
def test_a_save_that_is_in_flight_when_the_signal_comes_is_committed_before_the_last_one(
    tmp_path: Path, processes: int, last: int, straight: Callable[[int], Path]
) -> None:
    """The save of step 4 stalls while training goes on, and is asked to stop in step 6."""
    fate, deeds = {"n": 3, "trained": 4, "deed": "stall"}, [["step", 6, processes // 2, "SIGTERM"]]
    often = ("train.steps=1000", "checkpoint.every=4", "checkpoint.async=true")
    job = poisoned(tmp_path, *often, processes=processes, fate=fate, deeds=deeds)
    job.until_step(last)
    assert steps(tmp_path) == []
    assert debris(tmp_path) == [".tmp-step-00000004"]
    (tmp_path / "go").touch()
    status, said = job.wait()
    assert status == (1 if processes else ASKED), said
    assert steps(tmp_path) == [4, last]
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": last}
    assert debris(tmp_path) == []
    goes_on(tmp_path, straight(processes), last + 2, processes=processes)


def test_a_job_that_hears_it_in_its_last_step_is_through(tmp_path: Path, straight: Callable[[int], Path]) -> None:
    status, said = poisoned(tmp_path, "train.steps=5", deeds=[["step", 4, 0, "SIGTERM"]]).wait()
    assert status == 0, said
    assert not (tmp_path / ".interrupted").exists()
    unharmed(tmp_path, straight(0), 5)


def test_loader_processes_that_are_signalled_with_their_trainers_do_not_end_them(
    tmp_path: Path, straight: Callable[[int], Path]
) -> None:
    job = poisoned(tmp_path, *LONG, "data.workers=1", processes=2, pace=0.1)
    job.until_step(3)
    everyone = [process for rank in job.ranks for process in (*rank.children(recursive=True), rank)]
    assert len(everyone) == 4
    for process in everyone:
        process.send_signal(signal.SIGTERM)
    status, said = job.wait()
    assert (status, left(tmp_path)) == (1, {0: ASKED, 1: ASKED}), said
    (step,) = steps(tmp_path)
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": step}
    assert step < 22, "too slow to be compared"
    goes_on(tmp_path, straight(2), step + 2, "data.workers=1", processes=2)


def test_a_rank_that_leaves_late_is_not_ended_before_all_has_been_said_and_done(tmp_path: Path) -> None:
    """The launcher asks all others to end as soon as one has left."""
    deeds = [["step", 2, 1, "SIGUSR1"], ["close", -1, 0, "hold"]]
    job = poisoned(tmp_path, *LONG, processes=2, deeds=deeds)
    job.until(lambda: 1 in left(tmp_path))
    time.sleep(0.5)  # in which it is asked
    (tmp_path / "go").touch()
    status, said = job.wait()
    assert (status, left(tmp_path)) == (1, {0: ASKED, 1: ASKED}), said
    assert steps(tmp_path) == [4]
    assert interrupted(tmp_path) == {"signal": "SIGUSR1", "step": 4}
    assert "stopped by SIGUSR1 after step 4: " in said


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_before_the_first_step_is_answered_after_it(
    tmp_path: Path, processes: int, straight: Callable[[int], Path]
) -> None:
    job = Job(tmp_path, "train.steps=100", processes=processes, module="tests.faults.signal_before_step")
    status, said = job.wait()
    assert status == (1 if processes else os.EX_TEMPFAIL), said
    (step,) = steps(tmp_path)
    assert step == (2 if processes else 1)  # several hear of it one boundary later
    assert json.loads((tmp_path / ".interrupted").read_text()) == {"signal": "SIGTERM", "step": step}
    trains(tmp_path, "train.steps=4", processes=processes)
    unharmed(tmp_path, straight(processes), 4)
