"""The process of a command: its streams may be closed, full or gone, and Ctrl-C is one line from the start on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffpipe.process import Interrupts, TolerantStream, raise_file_limit

PREPARE = "import sys; from diffpipe.process import *; prepare_streams(); "


def python(program: str, shell: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program, with redirections of the shell."""
    words = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, PREPARE + program]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | env)


class Broken(io.StringIO):
    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_message_that_cannot_be_written_is_no_error(number: int) -> None:
    stream = TolerantStream(Broken(number))
    print("a message", file=stream, flush=True)
    stream.writelines(["two", "lines"])
    closed = io.StringIO()
    closed.close()
    print("a message", file=TolerantStream(closed), flush=True)


def test_other_uses_of_the_stream_reach_it() -> None:
    stream = io.StringIO()
    print("a message", file=TolerantStream(stream))
    assert stream.getvalue() == "a message\n"
    assert TolerantStream(stream).isatty() is False


@pytest.mark.parametrize("shell", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_file_does_not_get_the_number_and_the_output_of_a_closed_stream(tmp_path: Path, shell: str) -> None:
    path = tmp_path / "checkpoint"
    program = f"f = open({str(path)!r}, 'w'); print('lost'); print('lost', file=sys.stderr, flush=True); "
    program += "import os; os.system('echo lost; echo lost >&2'); f.write('content'); f.close(); assert f"
    assert python(program, shell).returncode == 0
    assert path.read_text() == "content"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_terminal_without_a_character_shows_another(encoding: str) -> None:
    text = "'folder \\u2192 shards \\udcff'"
    done = python(f"print({text}); print({text}, file=sys.stderr)", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout == "folder ? shards ?\n"
    assert done.stderr == "folder \\u2192 shards \\udcff\n"


def test_ctrl_c_is_seen_also_where_an_import_makes_another_error_of_it() -> None:
    interrupts, before = Interrupts(), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupts.listen()
        with contextlib.suppress(KeyboardInterrupt):  # a module of compiled code raises an ImportError instead
            signal.raise_signal(signal.SIGINT)
        assert interrupts.seen
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_was_started_to_ignore_ctrl_c_ignores_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Interrupts().listen()
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_the_end_of_the_interpreter_says_nothing() -> None:
    program = "import signal, threading, time; i = Interrupts(); i.listen(); i.end(); "
    program += "threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()"
    done = python(program)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("ACCELERATE_MIXED_PRECISION", "SIGTERM"), ("TORCHELASTIC_RUN_ID", "SIGTERM"), ("", "none")],
)
def test_a_process_ends_with_its_launcher_and_not_with_another_parent(variable: str, expected: str) -> None:
    child = "import signal, sys; from diffpipe.process import end_with_launcher; "
    child += (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); end_with_launcher(); print('up', flush=True); "
    )
    child += f"received = signal.sigtimedwait([signal.SIGTERM], {60 if variable else 0.5}); "
    child += "print('SIGTERM' if received else 'none')"
    parent = "import os, signal, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=-3); "
    parent += "sys.stdin.read(1); os.kill(os.getpid(), signal.SIGKILL)"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
    launcher = subprocess.Popen(
        [sys.executable, "-c", parent, child],
        env=env | ({variable: "no"} if variable else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "up\n"
        launcher.stdin.write("x")
        launcher.stdin.flush()
        assert launcher.stdout.read() == f"{expected}\n"
    assert launcher.returncode == -signal.SIGKILL


def test_the_file_limit_is_raised_to_what_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised[0] >= min(1 << 20, hard if hard != resource.RLIM_INFINITY else 1 << 20)
        assert raised[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
