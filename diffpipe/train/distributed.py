"""Processes that act together: who is who, and how they exchange small things on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from diffpipe.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Communicator:
    """The processes of a job as one of them sees them.

    group: what they talk over; None is the default group. What runs beside training, in a thread of its own, takes a
    group of its own: collectives of two threads on one group would mix.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. A collective: all ranks must call it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        self.gather(None)

    def raise_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; where it raises a UserError on any, raise the first one's on all.

        Without it, the ranks on which all is well would wait in their next collective for those that have left.
        """
        result, message = None, None
        try:
            result = action()
        except UserError as error:
            message = str(error)
        for other in self.gather(message):
            if other is not None:
                raise UserError(other)
        return result  # pyright: ignore[reportReturnType]
