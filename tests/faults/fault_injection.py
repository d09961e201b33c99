"""`python -m tests.faults.fault_injection …`: `python -m diffpipe …` with the faults that POISON, JSON, names:

- "deeds": `[place, step, rank, deed]` each. Places are "step", before step k is trained (from 0), "draw", in the hook
  that draws samples after k steps, and "close", when the loader is closed (step -1). A deed is the name of a signal
  that the process sends itself, or "hold": wait until there is a file `go` in the run directory;
- "loss", "gradient": the keys of samples that make the loss, or its gradient alone, NaN;
- "pace": seconds that each step takes at least.

FATE (tests/faults/fault_at_save.py) is honoured, too. Every process that leaves by itself, in whatever way, writes
its exit status to `left-RANK` in the run directory. One that leaves for numbers that are not finite writes the weights
that it then has to `weights-RANK.npz`, beside it.
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
from tests.faults.fault_at_save import meet
from tests.support.training_jobs import Job

MODULE = "tests.faults.fault_injection"
RANK = int(os.environ.get("RANK", "0"))


def poisoned(run: Path, *words: str, processes: int = 0, fate: object = None, **poison: object) -> Job:
    """A job that meets with it."""
    told = {} if fate is None else {"fate": json.dumps(fate)}
    return Job(run, *words, processes=processes, module=MODULE, poison=json.dumps(poison), **told)


def left(run: Path) -> dict[int, int]:
    """By rank, the exit status of those that have left by themselves."""
    return {int(path.name.removeprefix("left-")): int(path.read_text()) for path in run.glob("left-*")}


class Poison:
    """See above."""

    def __init__(
        self,
        run: Path,
        deeds: Sequence[tuple[str, int, int, str]] = (),
        loss: Sequence[str] = (),
        gradient: Sequence[str] = (),
        pace: float = 0,
    ):
        self.run, self.deeds, self.pace = run, deeds, pace
        self._bad_loss, self._bad_gradient = {*loss}, {*gradient}

    def at(self, place: str, step: int) -> None:
        for where, when, rank, deed in self.deeds:
            if (where, when, rank) == (place, step, RANK):
                if deed == "hold":
                    self._hold()
                else:
                    os.kill(os.getpid(), signal.Signals[deed])

    def _hold(self) -> None:
        while not (self.run / "go").exists():
            time.sleep(0.01)

    def spoil(self, batch: Batch, found: Loss) -> Loss:
        """The loss with what these samples do to it."""
        bad_loss, bad_gradient = (
            torch.tensor([key in bad for key in batch.keys]) for bad in (self._bad_loss, self._bad_gradient)
        )
        if bad_gradient.any():
            found.per_sample.register_hook(lambda gradient: gradient.masked_fill(bad_gradient, torch.nan))
        return dataclasses.replace(found, per_sample=found.per_sample.masked_fill(bad_loss, torch.nan))

    def keep_weights(self, trainer: Trainer) -> None:
        weights = {name: full_tensor(value) for name, value in trainer.state().items() if name.startswith("net.")}
        arrays: dict[str, Any] = {name: value.numpy() for name, value in weights.items()}
        np.savez(self.run / f"weights-{RANK}.npz", **arrays)

    def spread(self) -> None:
        """Put it into the command."""
        poison = self
        train_step, run, draw, batches = Trainer.train_step, Trainer.run, Monitor.draw, job.batches

        def spoiled_run(self: Trainer, *args: Any) -> None:
            loss = self.stage.loss

            def spoiled_loss(phase: Phase, nets: Any, batch: Batch, rng: Any) -> Loss:
                return poison.spoil(batch, loss(phase, nets, batch, rng))

            self.stage.loss = spoiled_loss  # pyright: ignore[reportAttributeAccessIssue]
            try:
                run(self, *args)
            except NonFiniteError:
                poison.keep_weights(self)
                raise

        def spoiled_step(self: Trainer, micro_batches: Sequence[Batch]) -> None:
            time.sleep(poison.pace)
            poison.at("step", self.step)
            train_step(self, micro_batches)

        def spoiled_draw(self: Monitor) -> None:
            poison.at("draw", self.trainer.step)
            draw(self)

        def spoiled_batches(*args: Any, **settings: Any) -> Any:
            try:
                yield from batches(*args, **settings)
            finally:
                poison.at("close", -1)

        setattr(Trainer, "run", spoiled_run)  # noqa: B010 (another signature)
        Trainer.train_step, Monitor.draw, job.batches = spoiled_step, spoiled_draw, spoiled_batches


def note(run: Path, status: int) -> int:
    word = run / f".left-{RANK}"
    word.write_text(str(status))
    word.replace(run / f"left-{RANK}")  # others look for it meanwhile
    return status


def note_leaps(run: Path) -> None:
    """Have the status noted, too, of a process that leaves at once."""
    leave = os._exit
    os._exit = lambda status: leave(note(run, status))


def leave_together(run: Path) -> None:
    """As soon as one process has left, the launcher ends the others: give them a moment to note how they ended."""
    deadline = time.monotonic() + 2
    while len(left(run)) < int(os.environ.get("WORLD_SIZE", "1")) and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    home = Path(next(word for word in sys.argv if word.startswith("run.dir=")).removeprefix("run.dir="))
    (home / f"left-{RANK}").unlink(missing_ok=True)
    note_leaps(home)
    if "FATE" in os.environ:
        meet(**json.loads(os.environ["FATE"]))
    Poison(home, **json.loads(os.environ.get("POISON", "{}"))).spread()
    ended = note(home, main())
    leave_together(home)
    sys.exit(ended)
