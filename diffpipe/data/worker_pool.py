"""Processes that work ahead: each answers its requests in turn, over a pipe of its own.

Torch's DataLoader has queues with threads of their own on either side, which cost as much a batch as five small images
cost to decode, and it answers signals and deaths by itself. Here the caller alone says when they end.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import torch

from diffpipe.errors import UserError

Q = TypeVar("Q")
A = TypeVar("A")
_PATIENCE = 2.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class DiedError(Exception):
    """A process has ended by itself; says how."""


def answers(answer: Callable[[Q], A], requests: Iterable[Q], processes: int, ahead: int) -> Generator[A, None, None]:
    """The answer to each request, in order, by so many forked processes, each `ahead` of the caller by so many.

    By this process, where there are none. A request is taken when it is given out, and must be small, for nobody waits
    for it to be read. What an answer raises is raised here, and so is DiedError. Close the iterator to end them.
    """
    if not processes:
        yield from map(answer, requests)
        return
    requests = iter(requests)
    crew = _Crew(processes, answer)
    try:
        asked = 0
        for request in itertools.islice(requests, processes * ahead):
            crew.ask(asked % processes, request)
            asked += 1
        for done in itertools.count():
            if done == asked:
                return
            found = crew.answer(done % processes)
            for request in itertools.islice(requests, 1):
                crew.ask(asked % processes, request)
                asked += 1
            yield found
            del found  # what it holds may be used again
    finally:
        crew.end()


class _Crew:
    """The processes. They ignore the signals that a whole job or process group gets: the caller answers those."""

    def __init__(self, n: int, answer: Callable[[Any], Any]):
        context = multiprocessing.get_context("fork")  # which shares what the caller holds, and pickles nothing
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self.end = Finalize(self, _end, (self.pipes, self.processes), exitpriority=100)
        for _ in range(n):
            here, there = context.Pipe()
            self.pipes.append(here)
            process = context.Process(target=_serve, args=(there, self.pipes, answer), daemon=True)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until it ignores them
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.processes.append(process)
            there.close()

    def ask(self, i: int, request: Any) -> None:
        try:
            self.pipes[i].send(request)
        except OSError as error:
            raise self._died(i) from error

    def answer(self, i: int) -> Any:
        try:
            found = self.pipes[i].recv()
        except (OSError, EOFError) as error:
            raise self._died(i) from error
        if isinstance(found, Exception):
            raise found
        return found

    def _died(self, i: int) -> DiedError:
        self.processes[i].join(_PATIENCE)
        code = self.processes[i].exitcode
        if code is not None and code < 0:
            return DiedError(f"by {signal.Signals(-code).name}")
        return DiedError(f"exit status {code}")


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():  # in the midst of something long
            process.kill()
            process.join()
        process.close()


def _serve(pipe: Connection, others: list[Connection], answer: Callable[[Any], Any]) -> None:
    """What a process does until its caller closes the pipe, or is gone."""
    for other in others:  # while one is open here, it does not end for those at its other side
        other.close()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = pipe.recv()
            try:
                found = answer(request)
            except UserError as error:
                found = error
            except Exception:  # noqa: BLE001 -- the caller raises it
                found = RuntimeError(f"in a process of its own:\n{traceback.format_exc()}")
            pipe.send(found)
            del found


def _follow() -> None:
    """End with a caller that was killed, in the midst of an answer, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
