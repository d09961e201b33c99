"""How the processes of a job talk: who is who, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffpipe.errors import UserError, os_error, raise_first

T = TypeVar("T")


@dataclass(frozen=True)
class Communicator:
    """The processes of a job, seen from one of them. Without arguments: one process alone.

    rank: this process, 0 to world − 1. world: how many processes there are. group: the process group that carries the
    messages; None is the default group. timeout: how long a collective of `new_group` waits for a process.
    """

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None
    timeout: timedelta = timedelta(minutes=10)

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

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank. A collective."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def sum_in_place(self, value: Tensor) -> None:
        """Overwrite a tensor with its sum over all ranks. A collective."""
        if self.world > 1:
            dist.all_reduce(value, group=self.group)

    def stack(self, value: Tensor) -> Tensor:
        """Every rank's tensor of one shape, in rank order: [world, *shape]. A collective."""
        if self.world == 1:
            return value[None]
        stacked = value.new_empty(self.world, *value.shape)
        dist.all_gather([*stacked], value.contiguous(), group=self.group)
        return stacked

    def broadcast(self, value: Tensor) -> None:
        """Overwrite a tensor with rank 0's. A collective."""
        if self.world == 1:
            return
        contiguous = value.contiguous()
        dist.broadcast(contiguous.reshape(-1).view(torch.uint8), src=0, group=self.group)  # bytes: of any dtype
        value.copy_(contiguous)

    def barrier(self) -> None:
        """Wait until all ranks have called it."""
        self.gather(None)

    def raise_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; where it raises a UserError on any, raise the first one's on all. A collective.

        An OSError, such as that of a full disk, counts as a UserError.

        Otherwise the ranks without an error would wait in their next collective for the one that has left.
        """
        result, failure, cause = None, None, None
        try:
            result = action()
        except (UserError, OSError) as error:
            user_error, cause = os_error(error) if isinstance(error, OSError) else error, error
            failure = (str(user_error), [*user_error.faults])
        errors = []
        for message, faults in filter(None, self.gather(failure)):
            errors.append(UserError(message))
            errors[-1].faults = faults
            errors[-1].__cause__ = cause  # on its own rank the traceback is whole
        raise_first(errors)
        return result  # pyright: ignore[reportReturnType]

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 alone: its result, or its UserError, on all ranks. A collective."""
        return self.gather(self.raise_on_all_ranks(lambda: action() if self.main else None))[0]  # pyright: ignore[reportReturnType]

    def new_group(self, timeout: timedelta | None = None) -> Communicator:
        """The same processes over a gloo group of its own, for a thread beside training. A collective.

        A thread needs its own: on one group, the collectives of two threads would mix. timeout: how long its
        collectives wait for a process, where this differs from this communicator's.
        """
        if self.world == 1:
            return self
        timeout = timeout or self.timeout
        group = dist.new_group(backend="gloo", timeout=timeout)
        return Communicator(self.rank, self.world, group, timeout)  # pyright: ignore[reportArgumentType] (all ranks are members)
