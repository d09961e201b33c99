"""`python -m tests.faults.fault_injection …`: `python -m diffpipe …` with the faults that FAULTS lists, as JSON:

- "events": `[place, step, rank, action]` each. A place is "step", before step k is trained (from 0); "sample", in the
  hook that draws samples after k steps; or "close", when the loader is closed (step -1). An action is the name of a
  signal that the process sends itself, or "hold": wait for a file `go` in the run directory;
- "nan_loss", "nan_gradient": the keys of samples whose loss, or whose gradient alone, becomes NaN;
- "seconds_per_step": the least time that a step takes.

FAULT_AT_SAVE (tests/faults/fault_at_save.py) works, too. A process that exits by itself, in whatever way, writes its
exit status to `exit-status-RANK` in the run directory. One that exits for a non-finite loss or gradient also writes its
weights, to `weights-RANK.npz`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffpipe.__main__ import main
from diffpipe.experiment import job
from diffpipe.experiment.monitor import Monitor
from diffpipe.interfaces import Batch, Loss, Phase
from diffpipe.train.loop import Trainer
from diffpipe.train.nonfinite import NonFiniteError
from diffpipe.train.parallel import full_tensor
from tests.faults.fault_at_save import inject_at_save
from tests.support.training_jobs import TrainingJob

MODULE = "tests.faults.fault_injection"
RANK = int(os.environ.get("RANK", "0"))


def faulty_job(
    run: Path, *words: str, processes: int = 0, fault_at_save: object = None, **faults: object
) -> TrainingJob:
    """A training job with these faults."""
    env = {} if fault_at_save is None else {"fault_at_save": json.dumps(fault_at_save)}
    return TrainingJob(run, *words, processes=processes, module=MODULE, faults=json.dumps(faults), **env)


def exit_statuses(run: Path) -> dict[int, int]:
    """The exit status by rank, of those that have exited by themselves."""
    prefix = "exit-status-"
    return {int(path.name.removeprefix(prefix)): int(path.read_text()) for path in run.glob(f"{prefix}*")}


class FaultInjector:
    """The faults of one process, see above."""

    def __init__(
        self,
        run: Path,
        events: Sequence[tuple[str, int, int, str]] = (),
        nan_loss: Sequence[str] = (),
        nan_gradient: Sequence[str] = (),
        seconds_per_step: float = 0,
    ):
        self.run, self.events, self.seconds_per_step = run, events, seconds_per_step
        self._nan_loss, self._nan_gradient = {*nan_loss}, {*nan_gradient}

    def at(self, place: str, step: int) -> None:
        """Do the action, if any, of this place and step."""
        for event_place, event_step, rank, action in self.events:
            if (event_place, event_step, rank) == (place, step, RANK):
                if action == "hold":
                    self._hold()
                else:
                    os.kill(os.getpid(), signal.Signals[action])

    def _hold(self) -> None:
        while not (self.run / "go").exists():
            time.sleep(0.01)

    def corrupt(self, batch: Batch, loss: Loss) -> Loss:
        """The loss, with NaN where these samples have it."""
        nan_loss, nan_gradient = (
            torch.tensor([key in keys for key in batch.keys]) for keys in (self._nan_loss, self._nan_gradient)
        )
        if nan_gradient.any():
            loss.per_sample.register_hook(lambda gradient: gradient.masked_fill(nan_gradient, torch.nan))
        return dataclasses.replace(loss, per_sample=loss.per_sample.masked_fill(nan_loss, torch.nan))

    def save_weights(self, trainer: Trainer) -> None:
        weights = {name: full_tensor(value) for name, value in trainer.state().items() if name.startswith("net.")}
        arrays: dict[str, Any] = {name: value.numpy() for name, value in weights.items()}
        np.savez(self.run / f"weights-{RANK}.npz", **arrays)

    def install(self) -> None:
        """Patch the command."""
        faults = self
        train_step, run, draw, batches = Trainer.train_step, Trainer.run, Monitor.draw, job.batches

        def faulty_run(self: Trainer, *args: Any) -> None:
            loss = self.stage.loss

            def faulty_loss(phase: Phase, nets: Any, batch: Batch, rng: Any) -> Loss:
                return faults.corrupt(batch, loss(phase, nets, batch, rng))

            self.stage.loss = faulty_loss  # pyright: ignore[reportAttributeAccessIssue]
            try:
                run(self, *args)
            except NonFiniteError:
                faults.save_weights(self)
                raise

        def faulty_step(self: Trainer, micro_batches: Sequence[Batch]) -> None:
            time.sleep(faults.seconds_per_step)
            faults.at("step", self.step)
            train_step(self, micro_batches)

        def faulty_draw(self: Monitor) -> None:
            faults.at("sample", self.trainer.step)
            draw(self)

        def faulty_batches(*args: Any, **settings: Any) -> Any:
            try:
                yield from batches(*args, **settings)
            finally:
                faults.at("close", -1)

        setattr(Trainer, "run", faulty_run)  # noqa: B010 (another signature)
        Trainer.train_step, Monitor.draw, job.batches = faulty_step, faulty_draw, faulty_batches


def record_exit(run: Path, status: int) -> int:
    temporary = run / f".exit-status-{RANK}"
    temporary.write_text(str(status))
    temporary.replace(run / f"exit-status-{RANK}")  # atomic: others look for it meanwhile
    return status


def record_os_exit(run: Path) -> None:
    """Record the status also where the process exits by os._exit."""
    os_exit = os._exit
    os._exit = lambda status: os_exit(record_exit(run, status))


def wait_for_other_exits(run: Path) -> None:
    """The launcher ends the other processes as soon as one has exited: give them a moment to record their status."""
    deadline = time.monotonic() + 2
    while len(exit_statuses(run)) < int(os.environ.get("WORLD_SIZE", "1")) and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    run_dir = Path(next(word for word in sys.argv if word.startswith("run.dir=")).removeprefix("run.dir="))
    (run_dir / f"exit-status-{RANK}").unlink(missing_ok=True)
    record_os_exit(run_dir)
    if "FAULT_AT_SAVE" in os.environ:
        inject_at_save(**json.loads(os.environ["FAULT_AT_SAVE"]))
    FaultInjector(run_dir, **json.loads(os.environ.get("FAULTS", "{}"))).install()
    exit_status = record_exit(run_dir, main())
    wait_for_other_exits(run_dir)
    sys.exit(exit_status)
