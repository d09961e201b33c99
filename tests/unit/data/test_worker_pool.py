"""Results come in order with any number of workers, and neither side outlives or waits in vain for the other."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.data.worker_pool import WorkerDiedError, WorkerPool
from diffpipe.errors import UserError


def slow_square(n: int) -> tuple[int, int]:
    time.sleep(0.001 * (n % 3))
    return n * n, os.getpid()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 12), workers=st.integers(0, 3), prefetch=st.integers(1, 3))
def test_results_are_in_order(n: int, workers: int, prefetch: int) -> None:
    with WorkerPool(slow_square, workers) as pool:
        results = list(pool.imap(range(n), prefetch=prefetch))
    assert [square for square, _ in results] == [i * i for i in range(n)]
    assert len({process for _, process in results} - {os.getpid()}) == min(n, workers)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 3), (3, 1)])
def test_a_request_is_taken_when_it_is_sent(workers: int, prefetch: int) -> None:
    taken: list[int] = []

    def requests() -> Iterator[int]:
        for i in itertools.count():
            taken.append(i)
            yield i

    with WorkerPool(slow_square, workers) as pool:
        results = pool.imap(requests(), prefetch=prefetch)
        for read in range(1, 6):
            next(results)
            assert len(taken) == workers * prefetch + read


def test_large_results_wait_until_they_are_read() -> None:
    sizes = [3_000_000] * 8
    with WorkerPool(bytes, 2) as pool:
        assert [len(data) for data in pool.imap(sizes, prefetch=4)] == sizes


def test_errors_of_the_function_are_raised_here() -> None:
    def fail(n: int) -> int:
        if n == 3:
            raise UserError("three is too many")
        return 1 // (n - 5)

    for workers in (0, 2):
        with WorkerPool(fail, workers) as pool:
            results = pool.imap(range(9), prefetch=2)
            assert len(list(itertools.islice(results, 3))) == 3
            with pytest.raises(UserError, match=r"^three is too many$"):
                next(results)
    with WorkerPool(fail, 1) as pool, pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError"):
        next(pool.imap([5], prefetch=1))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("code", "message"), [("os.kill(os.getpid(), 9)", "by SIGKILL"), ("os._exit(7)", "exit status 7")]
)
def test_a_worker_that_dies_is_noticed_when_its_result_is_due(code: str, message: str) -> None:
    def die(n: int) -> int:
        if n == 3:
            exec(code)
        return n

    start = time.monotonic()
    with WorkerPool(die, 2) as pool, pytest.raises(WorkerDiedError, match=message):
        list(pool.imap(range(9), prefetch=2))
    assert time.monotonic() - start < 60  # rather than never
    assert multiprocessing.active_children() == []


def test_a_worker_in_the_middle_of_a_long_request_is_ended() -> None:
    pool = WorkerPool(time.sleep, 2)
    next(pool.imap([0, 1000, 1000], prefetch=1))
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 60  # of 1,000 seconds
    assert multiprocessing.active_children() == []


END = """
import itertools, multiprocessing, os, signal, sys, time
from diffpipe.data.worker_pool import WorkerPool
pool = WorkerPool(time.sleep, 2)
results = pool.imap(itertools.chain([0], itertools.repeat(SECONDS)), prefetch=2)
next(results)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("1 / 0", 1),
    ],
)
@pytest.mark.parametrize("seconds", [0, 1000])  # with short requests, and in the middle of a long one
def test_workers_end_with_their_owner_however_it_ends(ending: str, status: int, seconds: int) -> None:
    code = END.replace("SECONDS", str(seconds)) + ending
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == status, run.stderr
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_signals_of_the_whole_job_are_left_to_the_owner() -> None:
    pool = WorkerPool(slow_square, 2)
    results = pool.imap(itertools.count(), prefetch=1)
    next(results)
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            assert child.pid is not None
            os.kill(child.pid, number)
    assert [square for square, _ in itertools.islice(results, 20)] == [i * i for i in range(1, 21)]
    pool.close()
