"""Answers come in order however many processes work, and neither side outlives or waits for the other in vain."""

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

from diffpipe.data.worker_pool import DiedError, answers
from diffpipe.errors import UserError


def slow_square(n: int) -> tuple[int, int]:
    time.sleep(0.001 * (n % 3))
    return n * n, os.getpid()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 12), processes=st.integers(0, 3), ahead=st.integers(1, 3))
def test_answers_are_in_order(n: int, processes: int, ahead: int) -> None:
    found = list(answers(slow_square, range(n), processes, ahead))
    assert [square for square, _ in found] == [i * i for i in range(n)]
    assert len({process for _, process in found} - {os.getpid()}) == min(n, processes)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("processes", "ahead"), [(1, 1), (2, 3), (3, 1)])
def test_a_request_is_taken_when_it_is_given_out(processes: int, ahead: int) -> None:
    taken: list[int] = []

    def requests() -> Iterator[int]:
        for i in itertools.count():
            taken.append(i)
            yield i

    source = answers(slow_square, requests(), processes, ahead)
    for done in range(1, 6):
        next(source)
        assert len(taken) == processes * ahead + done
    source.close()


def test_large_answers_wait_for_those_who_read_them() -> None:
    sizes = [3_000_000] * 8
    assert [len(data) for data in answers(bytes, sizes, 2, 4)] == sizes


def test_what_an_answer_raises_is_raised_here() -> None:
    def fail(n: int) -> int:
        if n == 3:
            raise UserError("three is too many")
        return 1 // (n - 5)

    for processes in (0, 2):
        source = answers(fail, range(9), processes, 2)
        assert len(list(itertools.islice(source, 3))) == 3
        with pytest.raises(UserError, match=r"^three is too many$"):
            next(source)
    source = answers(fail, [5], 1, 1)
    with pytest.raises(RuntimeError, match=r"(?s)in fail.*ZeroDivisionError"):
        next(source)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("code", "said"), [("os.kill(os.getpid(), 9)", "by SIGKILL"), ("os._exit(7)", "exit status 7")]
)
def test_a_process_that_dies_is_noticed_when_its_answer_is_due(code: str, said: str) -> None:
    def die(n: int) -> int:
        if n == 3:
            exec(code)
        return n

    source = answers(die, range(9), 2, 2)
    start = time.monotonic()
    with pytest.raises(DiedError, match=said):
        list(source)
    assert time.monotonic() - start < 5
    assert multiprocessing.active_children() == []


def test_a_process_in_the_midst_of_something_long_is_ended() -> None:
    source = answers(time.sleep, [0, 1000, 1000], 2, 1)
    next(source)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 10
    assert multiprocessing.active_children() == []


END = """
import itertools, multiprocessing, os, signal, sys, time
from diffpipe.data.worker_pool import answers
source = answers(time.sleep, itertools.chain([0], itertools.repeat(SECONDS)), 2, 2)
next(source)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("1 / 0", 1),
    ],
)
@pytest.mark.parametrize("seconds", [0, 1000])  # at work, and in the midst of something long
def test_processes_end_with_their_caller_however_it_ends(ending: str, status: int, seconds: int) -> None:
    code = END.replace("SECONDS", str(seconds)) + ending
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == status, run.stderr
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_signals_of_the_whole_job_are_left_to_the_caller() -> None:
    source = answers(slow_square, itertools.count(), 2, 1)
    next(source)
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            assert child.pid is not None
            os.kill(child.pid, number)
    assert [square for square, _ in itertools.islice(source, 20)] == [i * i for i in range(1, 21)]
    source.close()
