"""Commands without the seconds that imports take: each is a fork of a server that has imported everything.

The server is an interpreter of its own (`python -m tests.support.fork_server`), so that what pytest has loaded, hooks
on imports among it, is not in the commands. It computes nothing and so has one thread: only that is safe to fork.
A command runs what `python -m diffpipe` runs. Several processes get the environment that torchrun would give them, and
when one fails the others are ended, as the launcher does. That `accelerate launch` does the same is for real launches
to show.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# What commands import late, and what it costs them: more than a second.
LATE = ("torch._dynamo", "torch.utils.tensorboard", "torch.distributed.checkpoint", "matplotlib.backends.backend_agg")


class Command:
    """A command that was started. `pid` is the parent of its processes, which are one process group."""

    def __init__(self, status: IO[str]):
        self._status = status
        self.pid = int(status.readline() or -1)
        assert self.pid > 0, "the server could not start the command"

    def wait(self, timeout: float) -> int:
        """Its exit status, negative for a signal as in `subprocess`. Past the timeout it is killed."""
        ready, _, _ = select.select([self._status], [], [], timeout)
        if not ready:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(f"process group {self.pid}", timeout)
        with self._status as status:
            return int(status.readline() or -signal.SIGKILL)  # nothing: the parent itself was killed


class Server:
    """The tests' end. Started by the first command; ends with this process."""

    def __init__(self, cwd: Path):
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=cwd,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.stop)

    def stop(self) -> None:
        self._channel.close()
        self._process.wait()

    def start(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        out: IO[Any],
        err: IO[Any],
        processes: int = 0,
        module: str = "diffpipe",
    ) -> Command:
        """`python -m MODULE WORDS…` by itself, or as that many processes that form a job."""
        request = {"words": list(words), "cwd": str(cwd), "env": dict(env), "processes": processes, "module": module}
        receiver, sender = os.pipe()
        socket.send_fds(self._channel, [json.dumps(request).encode()], [sender, out.fileno(), err.fileno()])
        os.close(sender)
        return Command(os.fdopen(receiver))


def serve(channel: socket.socket) -> None:
    """Fork a parent for each command that is asked for, until the tests hang up."""
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            return
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads > 1:
            raise RuntimeError(f"the server has {threads} threads: something that it imported started one")
        if os.fork() == 0:
            channel.close()
            _launch(*fds, **json.loads(message))
        for fd in fds:
            os.close(fd)


def _launch(
    status: int, out: int, err: int, *, words: list[str], cwd: str, env: dict[str, str], processes: int, module: str
) -> None:
    """Be the parent of a command's processes: start them, say who this is, wait, say how it ended."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(cwd)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(env)
    pids = set()
    for place in _places(processes):
        pid = os.fork()
        if pid == 0:
            for fd in (status, out, err):
                os.close(fd)
            os.environ.update(place)
            os._exit(_run(module, words))
        pids.add(pid)
    os.write(status, f"{os.getpid()}\n".encode())
    code = _end(pids)
    os.write(status, f"{1 if code and processes else code}\n".encode())
    os._exit(0)


def _run(module: str, words: Sequence[str]) -> int:
    """The command in this process, to its end but for the interpreter's own: its exit status."""
    status: object = 0
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as left:
        status = left.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (the interpreter would do the same)
        traceback.print_exc()
        status = 1
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


def _places(processes: int) -> list[dict[str, str]]:
    """The variables that torchrun adds to the environment of each process of a job on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = str(processes)
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)] or [{}]


def _end(pids: set[int]) -> int:
    """Wait for all of them. When one fails, end the others, after a moment in which they may say why."""
    first = 0
    while pids:
        pid, status = os.waitpid(-1, 0)
        pids.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            time.sleep(0.1)
            for other in pids:
                os.kill(other, signal.SIGTERM)
    return first


def _preload() -> None:
    """Import the package whole: a command imports its part of it only when it runs."""
    package = importlib.import_module("diffpipe").__path__
    modules = [module.name for module in pkgutil.walk_packages(package, "diffpipe.")]
    for module in (*LATE, *modules):
        if module != "diffpipe.__main__":  # runpy executes it, and warns if it was imported before
            with contextlib.suppress(Exception):  # a command that cannot be imported says so itself
                importlib.import_module(module)
    gc.freeze()


if __name__ == "__main__":
    _preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the parents ended
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # what was frozen would be reported as leaks
