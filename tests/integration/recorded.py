"""`python -m tests.integration.recorded …` is `python -m diffpipe …`, watched, and killed where a test wants it.

With SHOWN=FOLDER in the environment, what each network is shown in training is written there, a file a rank. With
KILLED_IN_STEP=k the process is killed with SIGKILL in step k (counted from 0), after the first of its updates.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffpipe.__main__ import main
from diffpipe.train.loop import Trainer


class Watched:
    """Wraps the methods of a trainer that say which phase of which step its networks work for."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[int, np.ndarray]] = {}
        self._where = ""
        self._calls = 0
        self._positions: list[int] = []

    def watch(self, trainer: Trainer) -> None:
        update, loss = trainer._update, trainer.stage.loss
        trainer._buckets_settled.update(trainer.nets)  # a first pass that does not count would be shown all the same

        def watched_update(phase: Any, micro_batches: Any, weight: Any) -> None:
            self._where, self._calls = f"step {trainer.step}, {phase.name}", 0
            update(phase, micro_batches, weight)
            if str(trainer.step) == os.environ.get("KILLED_IN_STEP"):
                os.kill(os.getpid(), signal.SIGKILL)

        def watched_loss(phase: Any, nets: Any, batch: Any, rng: Any) -> Any:
            self._positions = batch.positions.tolist()
            return loss(phase, nets, batch, rng)

        trainer._update = watched_update
        trainer.stage.loss = watched_loss  # pyright: ignore[reportAttributeAccessIssue]
        for name, net in trainer.nets.items():
            net.register_forward_pre_hook(self._note(name))

    def _note(self, name: str) -> Callable[..., None]:
        def note(net: Any, args: tuple[Any, ...]) -> None:
            self._calls += 1
            b = len(self._positions)
            for i, arg in enumerate(args):
                if isinstance(arg, Tensor):  # of b samples, or of several images of each, one batch above the other
                    for part, rows in enumerate(arg.detach().float().split(b)):
                        at = self.shown.setdefault(f"{self._where}, {name}, call {self._calls}.{i}.{part}", {})
                        at |= dict(zip(self._positions, rows.numpy().copy(), strict=True))

        return note

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tables = {}
        for where, rows in self.shown.items():
            tables |= {f"{where}|positions": np.array([*rows]), f"{where}|rows": np.stack([*rows.values()])}
        np.savez(folder / f"{os.environ.get('RANK', '0')}-{os.getpid()}.npz", **tables)  # pyright: ignore[reportArgumentType]


def shown(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    """The network inputs of all ranks and runs: for each call of each network the row of each position."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for path in folder.iterdir():
        with np.load(path) as tables:
            for where in {name.partition("|")[0] for name in tables.files}:
                rows = dict(zip(tables[f"{where}|positions"].tolist(), tables[f"{where}|rows"], strict=True))
                assert not found.setdefault(where, {}).keys() & rows.keys(), "two ranks had the same position"
                found[where] |= rows
    return found


def run(words: Sequence[str]) -> int:
    watched, start = Watched(), Trainer.__init__

    def watched_start(self: Trainer, *args: Any, **settings: Any) -> None:
        start(self, *args, **settings)
        watched.watch(self)

    setattr(Trainer, "__init__", watched_start)  # noqa: B010 (another signature)
    status = main(words)
    if "SHOWN" in os.environ:
        watched.save(Path(os.environ["SHOWN"]))
    return status


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
