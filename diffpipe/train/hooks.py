"""Hooks: what a run does every so many steps beside training, such as saving, sampling and scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Hook(NamedTuple):
    """A function that all ranks call after every `every` steps (0: never) and, if `last`, after the last step.

    measures: it returns values to log with the step. Such hooks run before the step is logged, the others after it.
    """

    every: int
    run: Callable[[], Mapping[str, float] | None]
    last: bool = False
    measures: bool = False

    def due(self, step: int, steps: int) -> bool:
        return (self.every > 0 and step % self.every == 0) or (self.last and step == steps)
