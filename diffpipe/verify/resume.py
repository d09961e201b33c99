"""Trainings that are killed and resumed, and those that are not."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffpipe.errors import UserError
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.distributed import Communicator
from diffpipe.verify import subprocess_jobs
from diffpipe.verify.checkpoint_diff import Record, read_seen
from diffpipe.verify.resume_plan import Moment, Plan, Training
from diffpipe.verify.verdict import Kill, Trained

LOOK = 0.01  # seconds between two looks at a training


def train(plan: Plan, training: Training, runs: Path, pace: float) -> Trained:
    """The run, from its start to its last step, killed where it is to be; `pace` is the seconds a step took before.

    Raises UserError where it fails by itself.
    """
    attempts: list[list[Record]] = []
    kills: list[Kill] = []
    run_dir = runs / training.name
    for i, world in enumerate(training.worlds):
        moment = training.moments[i] if i < len(training.moments) else None
        step, pace = _attempt(plan, training.name, world, moment, run_dir, pace)
        # Each attempt its own: what one has lost another must not hide.
        seen = run_dir / f"seen-{i + 1}"
        with contextlib.suppress(FileNotFoundError):  # it may not have come to a step
            (run_dir / "seen").rename(seen)
        attempts.append(read_seen(seen))
        if moment is not None:
            kills.append(Kill(world, moment.step, moment.share, step, _newest(run_dir), training.worlds[i + 1]))
            print(f"{training.name}: {kills[-1]}", file=sys.stderr, flush=True)
    checkpoint, _ = checkpoints.newest_valid(run_dir / "checkpoints", Communicator())
    assert checkpoint is not None, "a training that ends well has saved its last step"
    return Trained(training.name, training.worlds, tuple(kills), attempts, checkpoint, pace)


def _attempt(plan: Plan, name: str, world: int, moment: Moment | None, run_dir: Path, pace: float) -> tuple[int, float]:
    """One start of training, to its end or until it is killed: the last step it was in, and the seconds a step."""
    log = run_dir.with_suffix(".log")
    progress, clock = subprocess_jobs.Progress(run_dir), _Clock(pace)
    settings: Any = {"unit": "step", "dynamic_ncols": True, "mininterval": 1 if sys.stderr.isatty() else 15}
    bar = tqdm(desc=f"{name}, world {world}", initial=_newest(run_dir), total=plan.steps, **settings)
    with contextlib.closing(bar), subprocess_jobs.start(plan.words(run_dir), world, log, plan.threads) as job:
        while (status := job.status()) is None:
            step = progress.look()
            if step is not None:
                bar.update(step - bar.n)
                clock.tick(step)
                # Without a checkpoint to come back to, a start afresh would pass for a resume.
                if moment is not None and step >= moment.step and _newest(run_dir):
                    time.sleep(moment.share * clock.pace)
                    if (status := job.status()) is not None:
                        break
                    job.kill()
                    return progress.look() or step, clock.pace
            time.sleep(LOOK)
    if status:
        print(subprocess_jobs.last_words(log), file=sys.stderr)
        raise UserError(f"the training of {name} at world {world} failed by itself with exit status {status}")
    if moment is not None:
        raise UserError(f"the training was over before it could be killed in step {moment.step}; give more --steps")
    return plan.steps - 1, clock.pace


class _Clock:
    """How long a step takes, by looks at the step that a training is in; what it took before, until that is known."""

    def __init__(self, pace: float):
        self.pace = pace
        self._first: tuple[int, float] | None = None
        self._last = (-1, 0.0)

    def tick(self, step: int) -> None:
        if step != self._last[0]:
            self._last = (step, time.perf_counter())
            self._first = self._first or self._last
            if step != self._first[0]:
                self.pace = (self._last[1] - self._first[1]) / (step - self._first[0])


def _newest(run_dir: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    found = checkpoints.committed(run_dir / "checkpoints")
    return checkpoints.step_of(found[0]) if found else 0


def make_folders(out: Path | None) -> tuple[Path, Path]:
    """The folder of the verdict, and that of the runs in it."""
    if out is None:
        home = Path(tempfile.mkdtemp(prefix="diffpipe-verify-resume-"))
    else:
        home = out
        try:
            home.mkdir(parents=True, exist_ok=True)
            if any(home.iterdir()):
                raise UserError(f"--out {out} holds files already; give an empty folder")
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}; give a folder that can be written") from error
    runs = home / "runs"
    runs.mkdir()
    return home, runs


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C unwind the stack, which kills the trainings: in sessions of their own they hear neither."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
