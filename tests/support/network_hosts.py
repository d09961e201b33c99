"""Several hosts on one machine: network namespaces, each with an address of its own, whose cables can be pulled.

They share the machine's files, as the nodes of a cluster share theirs, and its host name, which no two nodes do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

INTERFACE = "eth0"


def refusal() -> str | None:
    """Why hosts cannot be made here, if they cannot."""
    if shutil.which("ip") is None:
        return "there is no `ip` to make network namespaces with"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts() as hosts:
            _ip("netns", "exec", hosts.name(0), "true")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are refused: {error.stderr.strip()}"
    return None


class Hosts(contextlib.ExitStack):
    """Two hosts with a cable between them. They, and all that was started on them, end with the context."""

    def __init__(self) -> None:
        super().__init__()
        self._name = f"diffpipe-{uuid.uuid4().hex[:8]}"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as half_made:
            half_made.callback(self.close)
            for host in (0, 1):
                _ip("netns", "add", self.name(host))
                self.callback(_ip, "netns", "delete", self.name(host))
            self.callback(self.kill)
            ends = [["name", INTERFACE, "netns", self.name(host)] for host in (0, 1)]
            _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            for host in (0, 1):
                _ip("-n", self.name(host), "address", "add", f"{self.address(host)}/24", "dev", INTERFACE)
                _ip("-n", self.name(host), "link", "set", "lo", "up")
                self.plug(host)
            half_made.pop_all()
        return self

    def name(self, host: int) -> str:
        return f"{self._name}-{host}"

    def address(self, host: int) -> str:
        return f"10.11.12.{host + 1}"

    def plug(self, host: int) -> None:
        _ip("-n", self.name(host), "link", "set", INTERFACE, "up")

    def unplug(self, host: int) -> None:
        """Cut the host off: packets vanish without an error."""
        _ip("-n", self.name(host), "link", "set", INTERFACE, "down")

    def start(
        self, host: int, command: Sequence[str], *, said: Path, cwd: Path, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """The command, started on the host; `said` gets its output."""
        words = ["ip", "netns", "exec", self.name(host), *command]
        with said.open("wb") as out:
            self._started.append(subprocess.Popen(words, cwd=cwd, env=env, stdout=out, stderr=out))
        return self._started[-1]

    def running(self, host: int) -> list[int]:
        """The processes on the host: launchers, and what outlived them."""
        return [int(pid) for pid in _ip("netns", "pids", self.name(host)).split()]

    def kill(self) -> None:
        for pid in (*self.running(0), *self.running(1)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait(timeout=30)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
