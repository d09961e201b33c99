"""The page of a run, served to this machine while the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.report.run_page import run_page
from diffpipe.report.run_record import read_run
from diffpipe.run_folder import CHECKPOINTS, CONFIG, EVENTS, LOCK, METRICS, holder

_ADDRESS = "127.0.0.1"
_SHARE = 0.1
"""The most of the time that is spent on making the page again: one of a long run takes seconds."""


class LivePage:
    """The page of a run that goes on. It is made again only when it is asked for and a file of the run has changed."""

    def __init__(self, home: Path):
        self._home = home
        self._lock = threading.Lock()
        self._version = self._page = ""
        self._next = 0.0

    def version(self) -> str:
        """The version of the page: it changes when the page would."""
        with self._lock:
            return self._refresh()

    def page(self) -> str:
        with self._lock:
            self._refresh()
            return self._page

    def _refresh(self) -> str:
        """Make the page again where a file has changed, unless that was done a moment ago."""
        start = time.monotonic()
        if start < self._next:
            return self._version
        version = _version(self._home)
        if version != self._version:
            self._page, self._version = run_page(read_run(self._home), version=version), version
            now = time.monotonic()
            self._next = now + (now - start) * (1 / _SHARE - 1)
        return self._version


def watch_report(home: Path, port: int, on_start: Callable[[str], None]) -> None:
    """Serve the page to this machine until Ctrl-C. on_start: called with the page's URL. Raises as `report_server`."""
    with report_server(home, port) as server, contextlib.suppress(KeyboardInterrupt):
        on_start(f"http://{_ADDRESS}:{server.server_port}/")
        server.serve_forever(poll_interval=0.2)


def report_server(home: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a run's page that only this machine reaches. port: 0 takes a free one.

    Raises UserError where there is no run, or the port cannot be had.
    """
    live = LivePage(home)
    live.page()  # a wrong directory is an error before there is a server
    try:
        return _Server((_ADDRESS, port), live)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port}: {getattr(error, 'strerror', None) or error}; give another --port") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], live: LivePage):
        super().__init__(address, _Handler)
        self.live = live

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing where a browser has left before its answer. Any other error is a bug, with its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 60  # seconds without a request: each connection holds a thread

    def do_GET(self) -> None:
        # A page of somebody else's could have its own name point at this machine, and read the answer.
        # The port is another one where a tunnel leads here.
        if self.headers.get("Host", "").partition(":")[0] not in (_ADDRESS, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        try:
            content = {"/": self.server.live.page, "/version": self.server.live.version}.get(self.path)
            if content is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = content().encode()
        except (UserError, OSError) as error:  # the run was removed, or cannot be read just now
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
            return
        kind = "text/html" if self.path == "/" else "text/plain"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the base class)
        """Print nothing: a request every two seconds is no news."""


def _version(home: Path) -> str:
    """A hash of the sizes and times of the run's files that the page is made from, and of the process that trains."""
    places = [home / name for name in (CONFIG, METRICS, EVENTS, LOCK)]
    for folder in ("samples", "scores", CHECKPOINTS):
        places += sorted((home / folder).glob("*"))
    stats: list[tuple[object, ...]] = []
    for place in places:
        with contextlib.suppress(OSError):
            status = place.stat()
            stats.append((place.name, status.st_size, status.st_mtime_ns))
    with contextlib.suppress(OSError):
        stats.append(holder(home / LOCK))  # a job that is killed changes no file
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
