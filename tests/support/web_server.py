"""A web server on this machine with the faults that a test asks for. It records the requests."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_CHUNK = 16384


@dataclass
class Request:
    """One request. start: the first byte that was asked for; sent: bytes of the body that were written so far."""

    path: str
    query: str
    start: int
    status: int
    authorization: str | None
    sent: int = 0


class Web(ThreadingHTTPServer):
    """Serves a folder.

    drop: of every `drop` answers the second breaks off in the middle of its body; 0 drops none. rate: bytes a second
    and connection. failing: statuses that the next requests are answered with. retry_after: the header of
    such an answer. ranges, etags: whether it knows them.
    A folder's page is the `index.html` in it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.drop, self.rate = 0, 0.0
        self.failing: list[int] = []
        self.retry_after = ""
        self.ranges, self.etags = True, True
        self.requests: list[Request] = []
        self.bodies = 0
        self.lock = threading.Lock()

    def asked(self, name: str) -> list[Request]:
        """The requests for files of that name."""
        return [request for request in self.requests if request.path.rpartition("/")[2] == name]

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        web, parts = self.server, urlsplit(self.path)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if web.ranges else None
        start = int(match[1]) if match else 0
        file = web.folder / unquote(parts.path).lstrip("/")
        file = file / "index.html" if file.is_dir() else file
        body = file.read_bytes() if file.is_file() else None
        with web.lock:
            status = web.failing.pop(0) if web.failing else (404 if body is None else 206 if match else 200)
            drop = body is not None and status < 300 and web.drop > 0 and web.bodies % web.drop == 1
            web.bodies += status < 300
            authorization = self.headers.get("Authorization")
            request = Request(unquote(parts.path), parts.query, start, status, authorization)
            web.requests.append(request)
        self._handle_nonfinite(request, body or b"", drop)

    def _handle_nonfinite(self, request: Request, whole: bytes, drop: bool) -> None:
        status, start = request.status, request.start
        body = whole[start:] if status < 300 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status >= 400 and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        if status < 300 and self.server.etags:
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()[:16]}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        end = len(body) // 2 if drop else len(body)
        try:
            while request.sent < end:
                at = request.sent
                request.sent += self.wfile.write(body[at : min(at + _CHUNK, end)])
                if self.server.rate:
                    time.sleep(_CHUNK / self.server.rate)
        except OSError:
            self.close_connection = True
        if drop:
            self.close_connection = True

    def log_message(self, format, *args) -> None:  # noqa: A002 (its name in the base class)
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server of that folder, until the block ends."""
    with Web(folder) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield web
        finally:
            web.shutdown()
            thread.join()
