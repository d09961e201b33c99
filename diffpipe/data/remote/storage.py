"""Remote files, through fsspec: read from any byte on, and taken up again where a connection broke."""

from __future__ import annotations

import importlib
import io
import sys
import time
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar, runtime_checkable

import fsspec
from fsspec.asyn import sync

from diffpipe.data.remote.urls import beside, is_remote, parse, redacted, resolved
from diffpipe.errors import UserError

__all__ = ["MissingError", "RemoteFile", "beside", "is_remote", "parse", "redacted", "tars"]

WAITS = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Seconds before each further attempt. They begin anew with every block of bytes that arrives."""
TIMEOUTS = {"sock_connect": 15.0, "sock_read": 60.0}
BLOCK = 8 << 20

T = TypeVar("T")

_AGAIN = {408, 425, 429}
_ACCESS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
}


def tars(folder: str) -> list[str]:
    """The URLs of the `*.tar` in a remote folder, sorted, as the store or the page at that URL lists them."""
    address = parse(folder)
    place, store = resolved(address._replace(path=address.path.rstrip("/") + "/")), _STORES[address.scheme]
    found = _patiently(store, redacted(folder), lambda: store.system().ls(place, detail=False))
    names = {each.rpartition("/")[2] for each in found}
    if address.scheme.startswith("http"):
        names = {urllib.parse.unquote(name.partition("?")[0]) for name in names}
    return [beside(folder, name) for name in sorted(names) if name.endswith(".tar")]


class RemoteFile(io.RawIOBase):
    """A remote file, from byte `start` on. It may be sought, at the cost of a new request.

    size: its bytes, or None where the server does not say. etag: what changes when the file does, or "" where the
    server says nothing of the kind. Raises UserError, at once for a file that is not there or not allowed, after the
    last of `WAITS` for a server that does not answer, and where the file changes while it is read.
    """

    def __init__(self, url: str, start: int = 0):
        super().__init__()
        address = parse(url)
        self.name = redacted(url)
        self._place, self._store = resolved(address), _STORES[address.scheme]
        self._position = start
        self._body: _Body | None = _patiently(self._store, self.name, lambda: self._store.open(self._place, start))
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
            self._hang_up()
            self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self.size is not None and self._position >= self.size:
            return 0
        data = _patiently(self._store, self.name, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._hang_up()
        super().close()

    def _read(self, n: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._store.open(self._place, self._position)
                if (self._body.size, self._body.etag) != (self.size, self.etag):
                    raise UserError(f"{self.name}: changed while it was read; run the same command again")
            data = self._body.read(min(n, BLOCK))
            if not data and self.size is not None:
                raise ConnectionError("the connection ended too soon")
            return data
        except BaseException:
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        body, self._body = getattr(self, "_body", None), None
        if body is not None:
            body.close()


class MissingError(UserError):
    """There is no such file."""


@runtime_checkable
class _Body(Protocol):
    """What one request, or a row of them, gives of a file from some byte on."""

    size: int | None
    etag: str

    def read(self, n: int) -> bytes: ...
    def close(self) -> None: ...


class _HTTPBody:
    """The answer to one GET. A server that knows no ranges sends all of the file, and what is not wanted is dropped."""

    def __init__(self, system: Any, url: str, start: int):
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})

        async def ask() -> Any:
            return await (await system.set_session()).get(system.encode_url(url), headers=headers)

        self._loop = system.loop
        self._handle_nonfinite: Any = sync(self._loop, ask)
        try:
            status, said = self._handle_nonfinite.status, self._handle_nonfinite.headers
            if status >= HTTPStatus.BAD_REQUEST:
                raise _RefusalError(status)
            length = said.get("Content-Length", "")
            if status == HTTPStatus.PARTIAL_CONTENT:
                length = said.get("Content-Range", "").rpartition("/")[2]
                start = 0
            self.size = int(length) if length.isdigit() else None
            self.etag = said.get("ETag") or said.get("Last-Modified") or ""
            while start and (skipped := self.read(min(start, BLOCK))):
                start -= len(skipped)
        except BaseException:
            self.close()
            raise

    def read(self, n: int) -> bytes:
        data: Any = sync(self._loop, self._handle_nonfinite.content.read, n)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._handle_nonfinite.close)


class _RefusalError(OSError):
    """A server's answer that is not the file."""

    def __init__(self, status: int):
        super().__init__()
        self.status = status


class _ObjectBody:
    """An object in a bucket, asked for by ranges of `BLOCK` bytes."""

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
            self._ready = self._system.cat_file(self._url, start=self._position, end=end)
            self._position += len(self._ready)
        data, self._ready = self._ready[:n], self._ready[n:]
        return data

    def close(self) -> None:
        self._ready = b""


class _Store:
    """A kind of place, the file system of fsspec that reads it, and the errors that this one raises."""

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

    def open(self, place: str, start: int) -> _Body:
        return (_HTTPBody if self._package == "aiohttp" else _ObjectBody)(self.system(), place, start)

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        loaded = {m: names for m, names in self._errors.items() if m in sys.modules}  # what is not, raises nothing
        return (OSError, *(getattr(sys.modules[m], name) for m, names in loaded.items() for name in names))


_AIOHTTP = {"aiohttp": ("ClientError",)}
_BOTO = {"botocore.exceptions": ("BotoCoreError", "ClientError")}
_GOOGLE = {"gcsfs.retry": ("HttpError",), "google.auth.exceptions": ("GoogleAuthError",)}
_STORES = {
    "http": _Store("http", "aiohttp", "", _AIOHTTP),
    "https": _Store("https", "aiohttp", "", _AIOHTTP),
    "s3": _Store("s3", "s3fs", "[s3]", _AIOHTTP | _BOTO),
    "gs": _Store("gs", "gcsfs", "[gcs]", _AIOHTTP | _GOOGLE),
}


def _patiently(store: _Store, name: str, attempt: Callable[[], T]) -> T:
    """What `attempt` returns at last. The errors of libraries are not passed on: they hold the whole URL."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except store.errors as error:
            reason, lasting = _reason(error)
        if lasting:
            access = _ACCESS.get(store.scheme, "give user and password for the host in ~/.netrc")
            missing = lasting is FileNotFoundError
            remedy = "check the address" if missing else access
            raise (MissingError if missing else UserError)(f"{name}: cannot be read ({reason}); {remedy}")
        if wait is not None:
            time.sleep(wait)
    raise UserError(
        f"{name}: cannot be read ({reason}), tried {len(WAITS) + 1} times; check the address and that the server is "
        "up, and run the same command again"
    )


def _reason(error: BaseException) -> tuple[str, type[OSError] | None]:
    """Why a read failed, without anything of the URL; and for what trying again cannot help, what kind of failure."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is no such file", FileNotFoundError
    kind = type(error).__name__
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in kind or kind == "RefreshError":
        return "access is denied", PermissionError
    if isinstance(status, int) and status in set(HTTPStatus):
        return f"{status} {HTTPStatus(status).phrase}", None if status in _AGAIN or status >= 500 else FileNotFoundError
    if isinstance(error, TimeoutError):
        return "no answer in time", None
    cause = getattr(error, "os_error", error)
    return (getattr(cause, "strerror", None) or f"the connection broke off: {kind}"), None
