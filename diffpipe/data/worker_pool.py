"""Forked worker processes that compute ahead of the process that reads their results.

Torch's DataLoader passes batches through queues with threads on either side. For each batch these cost as much as
decoding five small images, and the DataLoader handles signals and dead workers by itself. Here each worker has a pipe
of its own, and the process that owns the pool decides when the workers end.
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
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import torch

from diffpipe.errors import UserError

Request = TypeVar("Request")
Result = TypeVar("Result")

_TIMEOUT = 2.0  # seconds that a worker has to end by itself
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class WorkerDiedError(Exception):
    """A worker has ended unasked; the message says how."""


class WorkerPool(Generic[Request, Result]):
    """Workers that apply `function` to requests. Without workers, this process does.

    They are forked at once, share what this process holds, and end when the pool is closed or its process ends in
    whatever way. They ignore the signals that a whole job or process group gets: this process handles those.
    """

    def __init__(self, function: Callable[[Request], Result], workers: int):
        self._function = function
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self.close = Finalize(self, _close, (self._pipes, self._processes), exitpriority=100)
        for _ in range(workers):
            self._start_worker()

    def __enter__(self) -> WorkerPool[Request, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def imap(self, requests: Iterable[Request], *, prefetch: int) -> Iterator[Result]:
        """The results, in the order of the requests; each worker has up to `prefetch` requests that are not yet read.

        A request is taken from `requests` when it is sent to a worker. It must be small, since sending it must not
        block. Raises what `function` raised, and WorkerDiedError.
        """
        if not self._processes:
            yield from map(self._function, requests)
            return
        workers, requests = len(self._processes), iter(requests)
        sent = 0
        for request in itertools.islice(requests, workers * prefetch):
            self._send(sent % workers, request)
            sent += 1
        for received in itertools.count():
            if received == sent:
                return
            result = self._receive(received % workers)
            for request in itertools.islice(requests, 1):
                self._send(sent % workers, request)
                sent += 1
            yield result
            del result  # the memory that it refers to may be reused from here on

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("fork")
        pipe, workers_end = context.Pipe()
        self._pipes.append(pipe)
        process = context.Process(target=_work, args=(workers_end, self._pipes, self._function), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until the worker ignores them
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._processes.append(process)
        workers_end.close()

    def _send(self, worker: int, request: Request) -> None:
        try:
            self._pipes[worker].send(request)
        except OSError as error:
            raise self._died(worker) from error

    def _receive(self, worker: int) -> Result:
        try:
            result = self._pipes[worker].recv()
        except (OSError, EOFError) as error:
            raise self._died(worker) from error
        if isinstance(result, Exception):
            raise result
        return result

    def _died(self, worker: int) -> WorkerDiedError:
        self._processes[worker].join(_TIMEOUT)
        status = self._processes[worker].exitcode
        if status is not None and status < 0:
            return WorkerDiedError(f"by {signal.Signals(-status).name}")
        return WorkerDiedError(f"exit status {status}")


def _close(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + _TIMEOUT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():  # in the middle of a long request
            process.kill()
            process.join()
        process.close()


def _work(pipe: Connection, owners_pipes: list[Connection], function: Callable[[Any], Any]) -> None:
    """Serve requests until the owner closes the pipe or ends."""
    for inherited in owners_pipes:  # while a copy is open here, the other workers would not see theirs end
        inherited.close()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = pipe.recv()
            try:
                result = function(request)
            except UserError as error:
                result = error
            except Exception:  # noqa: BLE001 -- the owner raises it
                result = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            pipe.send(result)
            del result


def _end_with_owner() -> None:
    """End the worker when its owner is killed, even in the middle of a request."""
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os._exit(1)
