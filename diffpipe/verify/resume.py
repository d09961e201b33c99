"""`verify`: trains the runs of a resume plan, kills and resumes them, and compares what they saw and what they hold."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from diffpipe import output
from diffpipe.errors import UserError
from diffpipe.files import atomic_write
from diffpipe.progress_bar import progress_bar
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.distributed import Communicator
from diffpipe.verify.resume_plan import KillPoint, PlannedRun, ResumePlan
from diffpipe.verify.sample_diff import SampleRecord, read_seen
from diffpipe.verify.subprocess_jobs import StartJob, StepWatcher, SubprocessJob, last_lines
from diffpipe.verify.verdict import FinishedRun, KillEvent, ResumeVerdict, compare_runs

POLL_SECONDS = 0.01  # between two looks at a training


def verify(
    plan: ResumePlan, out: Path | None = None, *, keep: bool = False, start: StartJob = SubprocessJob
) -> ResumeVerdict:
    """Train, kill and resume the plan's runs and compare them.

    out: an empty folder for verdict.txt, verdict.json and the runs; a temporary one by default. The runs are deleted
    unless they differ or `keep`. start: starts a training job. Raises UserError where a training fails by itself.
    """
    folder = _make_folder(out)
    runs = folder / "runs"
    try:
        with exit_on_signals():
            finished: list[FinishedRun] = []
            for run in plan.runs():
                seconds_per_step = finished[-1].seconds_per_step if finished else 0.0
                finished.append(_train(plan, run, runs, seconds_per_step, start))
            verdict = compare_runs(plan, finished)
        keep = keep or not verdict.exact
        verdict = verdict._replace(kept=runs if keep else None)
        if out is not None:
            atomic_write(folder / "verdict.txt", verdict.text() + "\n")
            atomic_write(folder / "verdict.json", json.dumps(verdict.tree(), indent=1) + "\n")
    finally:
        if not keep:
            shutil.rmtree(folder if out is None else runs, ignore_errors=True)
    return verdict


def _train(plan: ResumePlan, run: PlannedRun, runs: Path, seconds_per_step: float, start: StartJob) -> FinishedRun:
    """The run trained to its last step, killed at its kill points. seconds_per_step: a first estimate."""
    attempts: list[list[SampleRecord]] = []
    kills: list[KillEvent] = []
    run_dir = runs / run.name
    for i, world in enumerate(run.worlds):
        kill_point = run.kill_points[i] if i < len(run.kill_points) else None
        step, seconds_per_step = _attempt(plan, run.name, world, kill_point, run_dir, seconds_per_step, start)
        # A folder for each attempt, so that one attempt's records cannot hide what another has lost.
        seen = run_dir / f"seen-{i + 1}"
        with contextlib.suppress(FileNotFoundError):  # it may have been killed before its first step
            (run_dir / "seen").rename(seen)
        attempts.append(read_seen(seen))
        if kill_point is not None:
            resumed_from = _newest_step(run_dir)
            kills.append(KillEvent(world, *kill_point, step, resumed_from, run.worlds[i + 1]))
            output.current.remark(f"{run.name}: {kills[-1]}")
    checkpoint, _ = checkpoints.newest_valid(run_dir / "checkpoints", Communicator())
    assert checkpoint is not None, "a training that ends well has saved its last step"
    return FinishedRun(run.name, run.worlds, tuple(kills), attempts, checkpoint, seconds_per_step)


def _attempt(
    plan: ResumePlan,
    name: str,
    world: int,
    kill_point: KillPoint | None,
    run_dir: Path,
    seconds_per_step: float,
    start: StartJob,
) -> tuple[int, float]:
    """One job, to its end or until it is killed: the last step it was in, and its seconds per step."""
    log = run_dir.with_suffix(".log")
    watcher, clock = StepWatcher(run_dir), _StepClock(seconds_per_step)
    bar = progress_bar(f"{name}, world {world}", "step", plan.steps, first=_newest_step(run_dir))
    with contextlib.closing(bar), start(plan.train_command(run_dir), world, log, plan.threads) as job:
        while (status := job.status()) is None:
            step = watcher.look()
            if step is not None:
                bar.update(step - bar.n)
                clock.see(step)
                # Only once there is a checkpoint: without one, a fresh start would pass for a resume.
                if kill_point is not None and step >= kill_point.step and _newest_step(run_dir):
                    time.sleep(kill_point.fraction * clock.seconds_per_step)
                    if (status := job.status()) is not None:
                        break
                    job.kill()
                    return watcher.look() or step, clock.seconds_per_step
            time.sleep(POLL_SECONDS)
    if status:
        print(last_lines(log), file=sys.stderr)
        raise UserError(f"the training of {name} at world {world} failed by itself with exit status {status}")
    if kill_point is not None:
        raise UserError(f"the training was over before it could be killed in step {kill_point.step}; give more --steps")
    return plan.steps - 1, clock.seconds_per_step


class _StepClock:
    """The seconds per step, from the times at which new steps are first seen; an estimate until there are two."""

    def __init__(self, seconds_per_step: float):
        self.seconds_per_step = seconds_per_step
        self._first: tuple[int, float] | None = None
        self._last = (-1, 0.0)

    def see(self, step: int) -> None:
        if step != self._last[0]:
            self._last = (step, time.perf_counter())
            self._first = self._first or self._last
            if step != self._first[0]:
                self.seconds_per_step = (self._last[1] - self._first[1]) / (step - self._first[0])


def _newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    committed = checkpoints.committed(run_dir / "checkpoints")
    return checkpoints.step_of(committed[0]) if committed else 0


def _make_folder(out: Path | None) -> Path:
    """An empty folder, with `runs` in it. Raises UserError where `out` holds files or cannot be written."""
    if out is None:
        folder = Path(tempfile.mkdtemp(prefix="diffpipe-verify-resume-"))
    else:
        folder = out
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UserError(f"--out {out} holds files already; give an empty folder")
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}; give a folder that can be written") from error
    (folder / "runs").mkdir()
    return folder


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C raise SystemExit here, so that leaving the job's context kills the training.

    The trainings are in sessions of their own, and get neither signal.
    """

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
