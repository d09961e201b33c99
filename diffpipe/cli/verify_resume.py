"""`diffpipe verify-resume CONFIG [key=value …]`: is a training that was killed and resumed the one that was not?

Four trainings of the same steps: uninterrupted at the first number of processes and at another; killed at random
moments and resumed with another number of processes each time; killed and resumed with one number. What they saw and
what they hold at the end is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffpipe.cli import jobs
from diffpipe.cli.resume_plan import Moment, Plan, Training
from diffpipe.cli.resume_verdict import Kill, Trained, judge
from diffpipe.cli.sameness import Record, read_seen
from diffpipe.errors import UserError
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.distributed import Team

LOOK = 0.01  # seconds between two looks at a training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the experiment; its data and its model are what is tried")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file: train.parallel=fsdp")
    parser.add_argument("--steps", type=int, default=24, help="how many to train, in each of four runs (default 24)")
    parser.add_argument("--worlds", help="numbers of processes, in turn (default 1,2,4 as far as there are GPUs)")
    parser.add_argument(
        "--kills", type=int, help="of the run that changes its world size (default: as many as --worlds)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed (default 0)")
    parser.add_argument("--out", type=Path, help="an empty folder for verdict.txt and verdict.json, and for the runs")
    parser.add_argument("--keep", action="store_true", help="keep the runs, which else are kept where they differ")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or 1 where the verdict is that they differ."""
    plan = Plan.make(args)
    home, runs = _folders(args.out)
    kept = args.keep
    try:
        with _ended_by_signals():
            made: list[Trained] = []
            for training in plan.trainings():
                made.append(train(plan, training, runs, made[-1].pace if made else 0.0))
            verdict = judge(plan, made)
        kept = kept or not verdict.exact
        text = verdict.text(runs if kept else None)
        if args.out is not None:
            (home / "verdict.txt").write_text(text + "\n", encoding="utf-8")
            (home / "verdict.json").write_text(json.dumps(verdict.tree(), indent=1) + "\n", encoding="utf-8")
    finally:
        if not kept:
            shutil.rmtree(runs if args.out is not None else home, ignore_errors=True)
    print(text)
    return 0 if verdict.exact else 1


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
    checkpoint, _ = checkpoints.newest_valid(run_dir / "checkpoints", Team())
    assert checkpoint is not None, "a training that ends well has saved its last step"
    return Trained(training.name, training.worlds, tuple(kills), attempts, checkpoint, pace)


def _attempt(plan: Plan, name: str, world: int, moment: Moment | None, run_dir: Path, pace: float) -> tuple[int, float]:
    """One start of training, to its end or until it is killed: the last step it was in, and the seconds a step."""
    log = run_dir.with_suffix(".log")
    progress, clock = jobs.Progress(run_dir), _Clock(pace)
    settings: Any = {"unit": "step", "dynamic_ncols": True, "mininterval": 1 if sys.stderr.isatty() else 15}
    bar = tqdm(desc=f"{name}, world {world}", initial=_newest(run_dir), total=plan.steps, **settings)
    with contextlib.closing(bar), jobs.start(plan.words(run_dir), world, log, plan.threads) as job:
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
        print(jobs.last_words(log), file=sys.stderr)
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


def _folders(out: Path | None) -> tuple[Path, Path]:
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
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C unwind the stack, which kills the trainings: in sessions of their own they hear neither."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
