"""A folder of whole remote files that the processes of a machine share: each is fetched once, checked and kept.

The name of a file is a hash of its full URL and its version. The version of a shard is the length and sha256 in its
index, which say more than an etag and need no request; that of an index is the server's etag.

While a file is fetched, it is `NAME.BYTES.part`, locked by the process that fetches it. The lock ends with that
process, however it ends, and the next process continues from the bytes that are there. The file gets its name only once
its hash is right.

The folder is this user's alone, and so are the files in it. A symbolic link, a FIFO or another user's file in a file's
place is refused, and a file that has changed since its hash was checked (see `verified`) is checked again.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from diffpipe.data.remote import verified
from diffpipe.data.remote.download import CachedFile, ChangedError, download
from diffpipe.data.remote.storage import RemoteFile
from diffpipe.data.remote.urls import redacted
from diffpipe.errors import UserError
from diffpipe.files import (
    has_name,
    lock,
    open_locked,
    open_regular,
    open_writable,
    private_folder,
    release,
    user_cache,
    user_path,
)
from diffpipe.plural import plural

DEFAULT_LIMIT = 1 << 36
_POLL = 0.05  # seconds
_RECENT = 300.0  # seconds
_PART = ".part"
_NAME = re.compile(r"[0-9a-f]{64}(?P<index>\.index)?(\.(?P<bytes>[0-9]{1,18})\.part)?")


class ShardCache:
    """At most `limit` bytes in a folder: `folder`, $DIFFPIPE_CACHE or ~/.cache/diffpipe/shards.

    The least recently used files make room for others. A process that has a removed file open can still read it;
    readers close such files when they open others.
    """

    def __init__(self, folder: str | None = None, limit: int = DEFAULT_LIMIT, least_rate: float | None = None):
        """least_rate: at which a server has to send, see `LeastRate`."""
        given = folder or os.environ.get("DIFFPIPE_CACHE")
        self.folder = user_path(given).absolute() if given else user_cache() / "shards"
        self.limit, self.least_rate = limit, least_rate

    def open(self, file: CachedFile, *, again: bool = False) -> int:
        """A descriptor of the file, which is fetched where it is missing, or in any case (again). Raises UserError."""
        while True:
            descriptor = None if again else self._open_cached(file)
            if descriptor is None:
                descriptor = self._fetch(file, ahead=False, again=again)
            if descriptor is not None:
                return descriptor
            time.sleep(_POLL)  # other processes are fetching; there is room when they are done

    def fetch(self, file: CachedFile) -> None:
        """Fetch the file, unless it is here, another process fetches it, or recently used files would have to go."""
        descriptor = self._open_cached(file)
        if descriptor is None:
            descriptor = self._fetch(file, ahead=True)
        if descriptor is not None:
            os.close(descriptor)

    def index(self, url: str) -> str:
        """The local path of the file at `url`, in the version that the server's etag and length give now."""
        with RemoteFile(url, least_rate=self.least_rate) as remote:
            if remote.size is None:
                raise UserError(f"{redacted(url)}: the server does not say how long it is; use one that does")
            file = CachedFile(url, remote.size, remote.etag, index=True)
        os.close(self.open(file, again=not remote.etag))  # without an etag, nothing says whether it has changed
        return str(self.folder / file.name)

    def drop(self, file: CachedFile) -> None:
        """Remove a file that turned out to be damaged. Raises UserError."""
        try:
            (self.folder / file.name).unlink(missing_ok=True)
        except OSError as error:  # the folder cannot be written to
            raise self._unusable(error) from error

    def _open_cached(self, file: CachedFile) -> int | None:
        """A descriptor of the file, or None where it is not here as a whole."""
        try:
            private_folder(self.folder)
            descriptor = open_regular(self.folder / file.name, own=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            whole = os.fstat(descriptor).st_size == file.bytes
            if whole and (
                verified.is_unchanged(descriptor) if file.index else verified.has_sha256(descriptor, file.sha256)
            ):
                mark_used(descriptor)
                return os.dup(descriptor)
        finally:
            os.close(descriptor)
        self.drop(file)
        return None

    def _fetch(self, file: CachedFile, ahead: bool, again: bool = False) -> int | None:
        """A descriptor of the file, which this call has fetched; None where others fetch it or there is no room now."""
        if file.bytes > self.limit:
            raise UserError(
                f"{redacted(file.url)} has {plural(file.bytes, 'byte')}, more than data.cache_bytes={self.limit}; "
                "raise it"
            )
        part_path = self._part_path(file)
        try:
            with self._locked_part(file, ahead) as part:
                if part is None:
                    return None
                try:
                    if (self.folder / file.name).exists() and not again:
                        part_path.unlink()
                        return None
                    verified.record(part, download(file, part, self.least_rate))
                    part_path.replace(self.folder / file.name)
                except (OSError, ChangedError):
                    part_path.unlink(missing_ok=True)
                    raise
                os.lseek(part, 0, os.SEEK_SET)
                return os.dup(part)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _locked_part(self, file: CachedFile, ahead: bool) -> Iterator[int | None]:
        """The locked file to download into, with room for all of it; None where there is no room or others hold it."""
        path = self._part_path(file)
        private_folder(self.folder)
        part = None
        with self._lock():
            if path.exists() or self._make_room(file.bytes, time.time() - _RECENT if ahead else math.inf):
                part = open_writable(path, mode=0o600, own=True)
        if part is None:
            yield None
            return
        try:
            locked = lock(part, wait=not ahead, owner="file") and has_name(part, path)
            yield part if locked else None
        finally:
            release(part)

    def _make_room(self, need: int, before: float) -> bool:
        """Whether `need` more bytes fit, after removing files that were last used before that time, if necessary."""
        kept: list[tuple[bool, float, int, Path]] = []
        for entry in os.scandir(self.folder):
            if (name := _NAME.fullmatch(entry.name)) is not None:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    size = int(name["bytes"]) if name["bytes"] else status.st_size
                    is_index = bool(name["index"]) and not name["bytes"]
                    kept.append((is_index, status.st_atime, size, Path(entry.path)))
        over = sum(size for _, _, size, _ in kept) + need - self.limit
        for _, used, size, path in sorted(kept):
            if over <= 0 or used > before:
                break
            if _remove(path):
                over -= size
        return over <= 0

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock of the whole folder."""
        descriptor = open_locked(self.folder / "lock", wait=True, owner="file", own=True)
        assert descriptor is not None
        try:
            yield
        finally:
            release(descriptor)

    def _part_path(self, file: CachedFile) -> Path:
        return self.folder / f"{file.name}.{file.bytes}{_PART}"

    def _unusable(self, error: OSError) -> UserError:
        path = Path(os.fsdecode(error.filename or self.folder))
        usable = os.access(self.folder, os.R_OK | os.W_OK | os.X_OK)
        if usable and path.parent == self.folder:
            return UserError(f"{path}: not a file of diffpipe's cache ({error.strerror}); remove it")
        return UserError(
            f"{self.folder}: remote shards cannot be kept there ({error.strerror}); free some space, lower "
            "data.cache_bytes, or set data.cache to a folder of your own that can be written"
        )


class RemoteShard(NamedTuple):
    """A remote file and the cache that it is read through."""

    cache: ShardCache
    file: CachedFile

    def open(self) -> int:
        return self.cache.open(self.file)


def mark_used(descriptor: int) -> None:
    """Record that an open file of the cache is in use now: its access time. That of its last change is kept."""
    with suppress(OSError):
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


def _remove(path: Path) -> bool:
    """Remove a file and return True, unless it is a part that another process is filling."""
    if path.suffix != _PART:
        path.unlink(missing_ok=True)
        return True
    try:
        part = open_regular(path, own=True)
    except OSError:  # it is gone, or none of the cache's files
        return False
    try:
        idle = lock(part, owner="file") and has_name(part, path)
        if idle:
            path.unlink()
        return idle
    finally:
        release(part)
