"""Remote files, read through fsspec from any byte on; a broken connection is resumed where it broke."""

from __future__ import annotations

import importlib
import io
import re
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar, runtime_checkable

import fsspec
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError

from diffpipe.data.remote.rate import LONGEST_PAUSE, LeastRate, SlowServerError, least_rate, pause
from diffpipe.data.remote.urls import parse, redacted, resolve
from diffpipe.errors import NoAnswerError, UserError
from diffpipe.plural import plural

WAITS = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Seconds before each further attempt. They start over with every block of bytes that arrives."""
TIMEOUTS = {"sock_connect": 15.0, "sock_read": 60.0}
BLOCK = 8 << 20

_LENGTH = re.compile("[0-9]{1,18}")

T = TypeVar("T")

_RETRIED = {408, 425, 429}
ACCESS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
}
"""By scheme: how to get access where it is denied."""


class RemoteFile(io.RawIOBase):
    """A remote file, from byte `start` on. Seeking costs a new request.

    size: its length in bytes, or None where the server does not say. etag: changes when the file does, or "" where the
    server gives none. Raises UserError: at once for a file that is missing or forbidden, after the last of `WAITS` for
    a server that does not answer, and where the file changes while it is read. Also where less than `least_rate` bytes
    per second arrive (None: see `LeastRate`).
    """

    def __init__(self, url: str, start: int = 0, least_rate: float | None = None):
        super().__init__()
        parts = parse(url)
        self.name = redacted(url)
        self._pace = LeastRate(self.name, least_rate)
        self._url, self._store = resolve(parts), STORES[parts.scheme]
        self._position = start
        self._body: _Body | None = retry(self._store, self.name, lambda: self._store.open(self._url, start))
        self.size, self.etag = self._body.size, self._body.etag

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END and self.size is None:
            raise io.UnsupportedOperation("the server does not say how long the file is")
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size or 0}[whence]
        if position != self._position:
            self._disconnect()
            self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self.size is not None and self._position >= self.size:
            return 0
        data = retry(self._store, self.name, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._disconnect()
        super().close()

    def _read(self, n: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._store.open(self._url, self._position)
                if (self._body.size, self._body.etag) != (self.size, self.etag):
                    raise UserError(f"{self.name}: changed while it was read; run the same command again")
            began = time.monotonic()
            data = self._body.read(min(n, BLOCK))
            self._pace.count(time.monotonic() - began, len(data))
            if not data and self.size is not None:
                raise ConnectionError("the connection ended too soon")
            return data
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        body, self._body = getattr(self, "_body", None), None
        if body is not None:
            body.close()


class MissingError(UserError):
    """There is no such file."""


@runtime_checkable
class _Body(Protocol):
    """The bytes of a file from some byte on, as one request or several deliver them."""

    size: int | None
    etag: str

    def read(self, n: int) -> bytes: ...
    def close(self) -> None: ...


class _HTTPBody:
    """The response to one GET. A server without ranges sends the whole file; the bytes before `start` are dropped."""

    def __init__(self, system: Any, url: str, start: int):
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})

        async def ask() -> Any:
            return await (await system.set_session()).get(system.encode_url(url), headers=headers)

        self._loop = system.loop
        self._response: Any = sync(self._loop, ask)
        try:
            status, response_headers = self._response.status, self._response.headers
            if status >= HTTPStatus.BAD_REQUEST:
                raise _RefusalError(status, pause(response_headers.get("Retry-After")))
            length = response_headers.get("Content-Length", "")
            if status == HTTPStatus.PARTIAL_CONTENT:
                length = response_headers.get("Content-Range", "").rpartition("/")[2]
                start = 0
            self.size = int(length) if _LENGTH.fullmatch(length) else None
            self.etag = response_headers.get("ETag") or response_headers.get("Last-Modified") or ""
            while start and (skipped := self.read(min(start, BLOCK))):
                start -= len(skipped)
        except BaseException:
            self.close()
            raise

    def read(self, n: int) -> bytes:
        data: Any = sync(self._loop, self._response.content.read, n)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._response.close)


class _RefusalError(OSError):
    """A response that is not the file."""

    def __init__(self, status: int, wait: float):
        """wait: the seconds that the server asks to wait before another attempt."""
        super().__init__()
        self.status, self.wait = status, wait


class _ObjectBody:
    """An object in a bucket, requested in ranges of `BLOCK` bytes."""

    def __init__(self, system: Any, url: str, start: int):
        self._system, self._url, self._position, self._ready = system, url, start, b""
        info = system.info(url, refresh=True)
        if info["type"] != "file":
            raise FileNotFoundError
        self.size: int | None = info["size"]
        self.etag = str(info.get("ETag") or info.get("etag") or info.get("LastModified") or "")

    def read(self, n: int) -> bytes:
        if not self._ready:
            assert self.size is not None
            end = min(self._position + BLOCK, self.size)
            rate, read = least_rate(), self._system._cat_file
            limit = max(TIMEOUTS["sock_read"], (end - self._position) / rate) if rate else None
            try:
                data: Any = sync(self._system.loop, read, self._url, start=self._position, end=end, timeout=limit)
            except FSTimeoutError:
                raise SlowServerError(f"less than {rate:.0f} bytes per second arrive") from None
            self._ready = data
            self._position += len(self._ready)
        data, self._ready = self._ready[:n], self._ready[n:]
        return data

    def close(self) -> None:
        self._ready = b""


class _Store:
    """A kind of storage, by its URL scheme: the fsspec file system that reads it, and the errors that this raises."""

    def __init__(self, scheme: str, package: str, extra: str, errors: dict[str, tuple[str, ...]]):
        self.scheme, self._package, self._extra, self._errors = scheme, package, extra, errors

    def system(self) -> Any:
        try:
            package, options = importlib.import_module(self._package), {}
        except ImportError as error:
            remedy = f"pip install 'diffpipe{self._extra}'"
            raise UserError(f"{self.scheme}:// needs {self._package}; install it with: {remedy}") from error
        if self._package == "aiohttp":
            timeout = package.ClientTimeout(total=None, **TIMEOUTS)
            options = {"client_kwargs": {"trust_env": True, "timeout": timeout}}  # proxies, and ~/.netrc
        return fsspec.filesystem(self.scheme, **options)

    def open(self, url: str, start: int) -> _Body:
        return (_HTTPBody if self._package == "aiohttp" else _ObjectBody)(self.system(), url, start)

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        loaded = {
            m: names for m, names in self._errors.items() if m in sys.modules
        }  # others cannot have raised anything
        return (OSError, *(getattr(sys.modules[m], name) for m, names in loaded.items() for name in names))


_AIOHTTP = {"aiohttp": ("ClientError",)}
_BOTO = {"botocore.exceptions": ("BotoCoreError", "ClientError")}
_GOOGLE = {"gcsfs.retry": ("HttpError",), "google.auth.exceptions": ("GoogleAuthError",)}
STORES = {
    "http": _Store("http", "aiohttp", "", _AIOHTTP),
    "https": _Store("https", "aiohttp", "", _AIOHTTP),
    "s3": _Store("s3", "s3fs", "[s3]", _AIOHTTP | _BOTO),
    "gs": _Store("gs", "gcsfs", "[gcs]", _AIOHTTP | _GOOGLE),
}


def retry(store: _Store, name: str, attempt: Callable[[], T]) -> T:
    """The result of the first attempt that succeeds. Library errors are not chained: they contain the whole URL."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except store.errors as error:
            reason, permanent = _reason(error)
            asked = getattr(error, "wait", 0.0)
        if permanent:
            access = ACCESS.get(store.scheme, "give user and password for the host in ~/.netrc")
            missing = permanent is FileNotFoundError
            remedy = "check the address" if missing else access
            raise (MissingError if missing else UserError)(f"{name}: cannot be read ({reason}); {remedy}")
        if asked > LONGEST_PAUSE:
            raise NoAnswerError(
                f"{name}: cannot be read ({reason}), and the server asks to wait {asked:.0f} seconds; run the same "
                "command again then"
            )
        if wait is not None:
            time.sleep(max(wait, asked))
    raise NoAnswerError(
        f"{name}: cannot be read ({reason}), tried {plural(len(WAITS) + 1, 'time')}; check the address and that the "
        "server is up, and run the same command again"
    )


def _reason(error: BaseException) -> tuple[str, type[OSError] | None]:
    """Why a read failed, without any part of the URL; and its kind, if it is permanent: trying again cannot help."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is no such file", FileNotFoundError
    kind = type(error).__name__
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in kind or kind == "RefreshError":
        return "access is denied", PermissionError
    if isinstance(status, int) and status in set(HTTPStatus):
        return (
            f"{status} {HTTPStatus(status).phrase}",
            None if status in _RETRIED or status >= 500 else FileNotFoundError,
        )
    if isinstance(error, SlowServerError):
        return str(error), None
    if isinstance(error, TimeoutError):
        return "no answer in time", None
    cause = getattr(error, "os_error", error)
    return (getattr(cause, "strerror", None) or f"the connection broke off: {kind}"), None
