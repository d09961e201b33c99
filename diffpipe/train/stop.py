"""Stop consensus: the ranks agree between two steps, without waiting, that one was asked to stop or could not save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from diffpipe.train.distributed import Communicator

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)


class Agreed(NamedTuple):
    """The flags of all ranks one step ago: the greatest signal (None: none), and whether a save had failed."""

    signal: signal.Signals | None
    failed: bool


class StopConsensus:
    """This rank's flags, and the flags of all ranks one step ago.

    A signal or a failed save may come on any rank at any moment, and all ranks have to leave after the same step. So
    the flags of each step are reduced over a gloo group of their own while the next step runs, and read after it. The
    device is never waited for. A dead process is noticed here, too; the device's own collectives would keep waiting.
    """

    def __init__(self, comm: Communicator):
        """A collective."""
        self.comm = comm.new_group()
        self._received = 0
        self._flags: Tensor | None = None
        self._reduction: dist.Work | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, a signal to stop does not end the process, but the run, after this step or the next one.

        Python gives signals to the main thread alone: in another one they are left to the main thread's handlers.
        """
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.getsignal(number) for number in SIGNALS if main}
        if before.get(signal.SIGHUP) is signal.SIG_IGN:  # nohup: the terminal may go away
            del before[signal.SIGHUP]
        for number in before:
            signal.signal(number, self._receive)
        try:
            yield
            if self._reduction is not None:
                self._reduction.wait()  # no rank leaves while another one still takes part in it
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C aborts at once; not under a launcher, which repeats the signal that the terminal sent already.
        if number == self._received == signal.SIGINT and "RANK" not in os.environ:
            raise KeyboardInterrupt
        self._received = number

    def poll(self, *, failed: bool = False) -> Agreed:
        """The flags of all ranks. All ranks call it after each step; raises RuntimeError where one no longer does.

        failed: whether a save has failed on this rank.
        """
        if self.comm.world == 1:
            return Agreed(_named(self._received), failed)
        agreed = Agreed(None, False)
        if self._reduction is not None:
            self._reduction.wait()
            assert self._flags is not None
            number, any_failed = self._flags.tolist()
            agreed = Agreed(_named(number), bool(any_failed))
        self._flags = torch.tensor([self._received, int(failed)])
        self._reduction = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self.comm.group, async_op=True)
        return agreed


def _named(number: int) -> signal.Signals | None:
    return signal.Signals(number) if number else None
