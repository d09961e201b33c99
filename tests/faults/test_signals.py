"""Stop signals: one last checkpoint, an exit status of its own, and the same command resumes exactly."""

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

from tests.faults.fault_injection import MODULE, exit_statuses, faulty_job
from tests.support.checkpoint_tensors import consolidated
from tests.support.commands import CONFIG, HOME, command
from tests.support.training_jobs import (
    SMALL,
    TrainingJob,
    assert_equals_uninterrupted,
    checkpoint_steps,
    last_logged_step,
    leftovers,
    train_to_end,
)

LONG = ("train.steps=1000", "checkpoint.every=0")
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again


def interrupted(run: Path) -> dict[str, object]:
    return json.loads((run / ".interrupted").read_text())


def assert_resumes(run: Path, uninterrupted: Path, end: int, *words: str, processes: int = 0) -> None:
    """The same command, but for the number of steps, resumes from the last checkpoint exactly."""
    (last,) = checkpoint_steps(run)[-1:]
    stderr = train_to_end(run, f"train.steps={end}", "checkpoint.every=0", *words, processes=processes)
    assert f"resuming from {run}/checkpoints/step-{last:08d}" in stderr
    assert not (run / ".interrupted").exists()
    assert_equals_uninterrupted(run, uninterrupted, end)


@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 2), (signal.SIGTERM, 0)], ids=str
)
def test_a_signal_to_the_launcher_ends_the_whole_job_with_one_last_checkpoint(
    tmp_path: Path, number: signal.Signals, processes: int, uninterrupted: Callable[[int], Path]
) -> None:
    """The launcher of several passes SIGTERM on. It dies of SIGUSR1, and that of one process of both signals.

    The processes then end because it has died.
    """
    words = command("train", CONFIG, f"run.dir={tmp_path}", *SMALL, *LONG, processes=processes)
    words[words.index("diffpipe")] = MODULE
    if not processes:
        words[1:1] = ["-m", "accelerate.commands.launch", "--cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "FAULTS": '{"seconds_per_step": 0.1}'}
    with subprocess.Popen(words, cwd=HOME, env=env, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 180
        while last_logged_step(tmp_path) < 3:
            assert time.monotonic() < deadline
            assert launcher.poll() is None, launcher.communicate()[1]
            time.sleep(0.02)
        job = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(number)
        _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert len(job) >= max(1, processes)
    _, alive = psutil.wait_procs(job, timeout=5)
    assert not alive, stderr
    (step,) = checkpoint_steps(tmp_path)
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": step}
    assert stderr.count(f"stopped by SIGTERM after step {step}: ") == 1, stderr
    assert leftovers(tmp_path) == []
    assert step < 22, "too slow to be compared"
    assert_resumes(tmp_path, uninterrupted(processes), step + 2, processes=processes)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_single_process_stops_after_the_step_in_which_the_signal_comes(
    tmp_path: Path, number: str, uninterrupted: Callable[[int], Path]
) -> None:
    status, stderr = faulty_job(tmp_path, *LONG, events=[["step", 4, 0, number]]).wait()
    assert status == STOPPED, stderr
    assert checkpoint_steps(tmp_path) == [5]
    assert interrupted(tmp_path) == {"signal": number, "step": 5}
    lines = [line for line in stderr.splitlines() if number in line]
    last = tmp_path / "checkpoints" / "step-00000005"
    assert lines == [f"stopped by {number} after step 5: {last}; the same command resumes it"], stderr
    assert "Traceback" not in stderr
    assert_resumes(tmp_path, uninterrupted(0), 8)


@pytest.mark.parametrize(("rank", "number"), [(0, "SIGTERM"), (1, "SIGHUP"), (1, "SIGUSR1"), (1, "SIGINT")])
def test_two_processes_stop_together_when_one_gets_a_signal(
    tmp_path: Path, rank: int, number: str, uninterrupted: Callable[[int], Path]
) -> None:
    status, stderr = faulty_job(tmp_path, *LONG, processes=2, events=[["step", 4, rank, number]]).wait()
    assert (status, exit_statuses(tmp_path)) == (1, {0: STOPPED, 1: STOPPED}), stderr
    assert checkpoint_steps(tmp_path) == [6]  # they agree one step later
    assert interrupted(tmp_path) == {"signal": number, "step": 6}
    assert stderr.count(f"stopped by {number} after step 6: ") == 1, stderr
    assert "Traceback" not in stderr
    assert_resumes(tmp_path, uninterrupted(2), 8, processes=2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_of_several_micro_batches_is_finished_before_the_stop(tmp_path: Path, parallel: str) -> None:
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    words = (f"train.parallel={parallel}", "train.accumulate=2", "stage.network.dropout=0.1", "data.flip=true")
    train_to_end(uninterrupted, *words, "train.steps=7", processes=2)
    status, stderr = faulty_job(run, *LONG, *words, processes=2, events=[["step", 3, 1, "SIGTERM"]]).wait()
    assert (status, exit_statuses(run)) == (1, {0: STOPPED, 1: STOPPED}), stderr
    assert checkpoint_steps(run) == [5]
    assert_resumes(run, uninterrupted, 7, *words, processes=2)
    actual, expected = (consolidated(where / "checkpoints" / "step-00000007") for where in (run, uninterrupted))
    assert {name: tensor.tobytes() for name, tensor in actual.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }


@pytest.mark.parametrize(("processes", "last"), [(0, 5), (2, 6)])
def test_a_signal_in_a_long_hook_stops_the_run_after_the_hook(
    tmp_path: Path, processes: int, last: int, uninterrupted: Callable[[int], Path]
) -> None:
    sampling = ("sample.every=4", "sample.n=2")
    events = [["sample", 4, 0, "SIGTERM"], ["sample", 4, 0, "hold"]]
    job = faulty_job(tmp_path, *LONG, *sampling, processes=processes, events=events)
    job.wait_until_step(4)
    assert checkpoint_steps(tmp_path) == []
    (tmp_path / "go").touch()
    status, stderr = job.wait()
    assert status == (1 if processes else STOPPED), stderr
    assert set(exit_statuses(tmp_path).values()) == {STOPPED}
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-00000004.png"]
    assert checkpoint_steps(tmp_path) == [last]
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": last}
    assert_resumes(tmp_path, uninterrupted(processes), 8, processes=processes)


@pytest.mark.parametrize(("processes", "last"), [(0, 7), (2, 8)])
def test_a_save_in_flight_at_the_signal_is_committed_before_the_last_one(
    tmp_path: Path, processes: int, last: int, uninterrupted: Callable[[int], Path]
) -> None:
    """The save of step 4 stalls while training goes on; the signal comes in step 6."""
    fault_at_save, events = {"n": 3, "after_steps": 4, "action": "stall"}, [["step", 6, processes // 2, "SIGTERM"]]
    often = ("train.steps=1000", "checkpoint.every=4", "checkpoint.async=true")
    job = faulty_job(tmp_path, *often, processes=processes, fault_at_save=fault_at_save, events=events)
    job.wait_until_step(last)
    assert checkpoint_steps(tmp_path) == []
    assert leftovers(tmp_path) == [".tmp-step-00000004"]
    (tmp_path / "go").touch()
    status, stderr = job.wait()
    assert status == (1 if processes else STOPPED), stderr
    assert checkpoint_steps(tmp_path) == [4, last]
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": last}
    assert leftovers(tmp_path) == []
    assert_resumes(tmp_path, uninterrupted(processes), last + 2, processes=processes)


def test_a_signal_in_the_last_step_does_not_interrupt_the_run(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    status, stderr = faulty_job(tmp_path, "train.steps=5", events=[["step", 4, 0, "SIGTERM"]]).wait()
    assert status == 0, stderr
    assert not (tmp_path / ".interrupted").exists()
    assert_equals_uninterrupted(tmp_path, uninterrupted(0), 5)


def test_loader_processes_ignore_the_signals_that_stop_the_job(
    tmp_path: Path, uninterrupted: Callable[[int], Path]
) -> None:
    job = faulty_job(tmp_path, *LONG, "data.workers=1", processes=2, seconds_per_step=0.1)
    job.wait_until_step(3)
    everyone = [process for rank in job.ranks for process in (*rank.children(recursive=True), rank)]
    assert len(everyone) == 4
    for process in everyone:
        process.send_signal(signal.SIGTERM)
    status, stderr = job.wait()
    assert (status, exit_statuses(tmp_path)) == (1, {0: STOPPED, 1: STOPPED}), stderr
    (step,) = checkpoint_steps(tmp_path)
    assert interrupted(tmp_path) == {"signal": "SIGTERM", "step": step}
    assert step < 22, "too slow to be compared"
    assert_resumes(tmp_path, uninterrupted(2), step + 2, "data.workers=1", processes=2)


SLOW = """
import time
from pathlib import Path
from accelerate.tracking import GeneralTracker


class Slow(GeneralTracker):
    name, requires_logging_directory, tracker = "slow", True, None

    def __init__(self, run_dir):
        super().__init__()
        self.end = Path(run_dir) / "tracker-has-finished"

    def store_init_configuration(self, values):
        pass

    def log(self, values, step, **_):
        pass

    def finish(self):
        time.sleep(6)
        self.end.touch()


diffpipe_trackers = {"slow": Slow}
"""


def test_a_tracker_that_takes_long_to_finish_is_waited_for(tmp_path: Path) -> None:
    """As Weights & Biases, which sends what it has left. The launcher ends it as soon as another rank has left."""
    (tmp_path / "slow.py").write_text(SLOW)
    words = ["--plugin", str(tmp_path / "slow.py"), "train.trackers=[slow]"]
    run = tmp_path / "run"
    status, stderr = faulty_job(run, *LONG, *words, processes=2, events=[["step", 2, 1, "SIGTERM"]]).wait()
    assert (status, exit_statuses(run)) == (1, {0: STOPPED, 1: STOPPED}), stderr
    assert (run / "tracker-has-finished").exists()


def test_a_rank_that_exits_late_is_not_ended_before_it_is_done(tmp_path: Path) -> None:
    """The launcher sends SIGTERM to the others as soon as one has exited."""
    events = [["step", 2, 1, "SIGUSR1"], ["close", -1, 0, "hold"]]
    job = faulty_job(tmp_path, *LONG, processes=2, events=events)
    job.wait_until(lambda: 1 in exit_statuses(tmp_path))
    time.sleep(0.5)  # the signal comes meanwhile
    (tmp_path / "go").touch()
    status, stderr = job.wait()
    assert (status, exit_statuses(tmp_path)) == (1, {0: STOPPED, 1: STOPPED}), stderr
    assert checkpoint_steps(tmp_path) == [4]
    assert interrupted(tmp_path) == {"signal": "SIGUSR1", "step": 4}
    assert "stopped by SIGUSR1 after step 4: " in stderr


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_before_the_first_step_stops_the_run_after_it(
    tmp_path: Path, processes: int, uninterrupted: Callable[[int], Path]
) -> None:
    job = TrainingJob(tmp_path, "train.steps=100", processes=processes, module="tests.faults.signal_before_step")
    status, stderr = job.wait()
    assert status == (1 if processes else os.EX_TEMPFAIL), stderr
    (step,) = checkpoint_steps(tmp_path)
    assert step == (2 if processes else 1)  # several agree one step later
    assert json.loads((tmp_path / ".interrupted").read_text()) == {"signal": "SIGTERM", "step": step}
    train_to_end(tmp_path, "train.steps=4", processes=processes)
    assert_equals_uninterrupted(tmp_path, uninterrupted(processes), 4)
