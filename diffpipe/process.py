"""The process of a command: Ctrl-C, the standard streams, and the number of open files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit status after Ctrl-C, as of a shell."""

_MOST_FILES = 1 << 20
_PR_SET_PDEATHSIG = 1  # prctl(2)


def is_main_process() -> bool:
    """Whether this is the process of a job that prints and writes files, as the launcher's environment says."""
    return os.environ.get("RANK", "0") == "0"


def end_with_launcher() -> None:
    """Let the kernel send this process SIGTERM when the launcher that started it dies.

    `accelerate launch` dies of SIGUSR1, and with one process also of SIGTERM, without a signal to what it started. A
    training that is left behind would hold its run directory. A process that no launcher started has no such parent.
    """
    if sys.platform == "linux" and ("TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Interrupts:
    """Ctrl-C of a command, from its first line to its last.

    seen: whether there was one. An import of compiled code may turn a KeyboardInterrupt into another error.
    """

    def __init__(self) -> None:
        self.seen = False

    def listen(self) -> None:
        """Raise KeyboardInterrupt at each Ctrl-C, unless the process was started to ignore it."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._receive)

    def end(self) -> None:
        """From here on, where nothing is left to do, Ctrl-C ends the process without a word."""
        if signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


class TolerantStream:
    """A stream for messages that never fails: a terminal may go away, a pipe end, the disk of a log file be full."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on /dev/null, and let no message fail.

    Otherwise the next file that the command opens would get the number of the closed one, and take its output.
    Characters that a terminal does not have are shown as `?` or by their number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, errors in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)
    if not isinstance(sys.stderr, TolerantStream):
        sys.stderr = TolerantStream(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]


def discard_output() -> None:
    """Send what is left for stdout nowhere: the interpreter writes it at its end, and would fail again."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def raise_file_limit() -> None:
    """Allow as many open files as the system lets this process have.

    A process group needs a connection to every rank, which passes the usual 1,024 at some hundred ranks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
