"""A folder of whole remote files that the processes of a machine share: each is fetched once, checked, and kept.

A file is named by a hash of its full URL and of what tells its versions apart: for a shard the length and sha256 in
its index, which say more than an etag does and cost no request; for an index the server's etag. While it is fetched,
`NAME.BYTES.part` takes it in, locked by whoever fetches. The lock ends with its process, however that ends, and the
next one goes on from the bytes that are there; the file has its name when its hash is right, and never before.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from diffpipe.data.remote.storage import RemoteFile, redacted
from diffpipe.errors import UserError
from diffpipe.files import has_name, lock, open_locked, open_regular, release

LIMIT = 1 << 36
_CHUNK = 1 << 18
_POLL = 0.05
_RECENT = 300.0
_INDEX = ".index"
_PART = ".part"


class Item(NamedTuple):
    """A version of a remote file. sha256: what its bytes hash to, or of an index, of which nobody knows, its etag."""

    url: str
    bytes: int
    sha256: str
    index: bool = False

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps([self.url, self.bytes, self.sha256]).encode()).hexdigest()
        return digest + (_INDEX if self.index else "")


class ChangedError(UserError):
    """The server has another file than the one that was indexed."""


class Cache:
    """At most `limit` bytes in a folder: `folder`, $DIFFPIPE_CACHE or ~/.cache/diffpipe/shards.

    The files that were used longest ago make room for others. Who has one open reads on in it, for an open file stays
    whole without its name; readers let go of such files when they open others.
    """

    def __init__(self, folder: str | None = None, limit: int = LIMIT):
        default = os.environ.get("DIFFPIPE_CACHE") or "~/.cache/diffpipe/shards"
        self.folder = Path(folder or default).expanduser().absolute()
        self.limit = limit

    def open(self, item: Item) -> int:
        """A descriptor of the file, fetched where it is not here. Raises UserError."""
        while True:
            file = self._found(item)
            if file is None:
                file = self._fetched(item, ahead=False)
            if file is not None:
                return file
            time.sleep(_POLL)  # others are fetching, and there is room when they have done

    def fetch(self, item: Item) -> None:
        """Fetch the file if nobody has, nobody does, and there is room that nobody has used of late."""
        file = self._found(item)
        if file is None:
            file = self._fetched(item, ahead=True)
        if file is not None:
            os.close(file)

    def index(self, url: str) -> str:
        """The path of the file at `url` in its present version, of which the server's etag and length tell."""
        with RemoteFile(url) as remote:
            if remote.size is None:
                raise UserError(f"{redacted(url)}: the server does not say how long it is; use one that does")
            item = Item(url, remote.size, remote.etag, index=True)
        os.close(self.open(item))
        return str(self.folder / item.name)

    def drop(self, item: Item) -> None:
        """Forget a file that turned out to be damaged."""
        (self.folder / item.name).unlink(missing_ok=True)

    def _found(self, item: Item) -> int | None:
        try:
            file = open_regular(self.folder / item.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        if os.fstat(file).st_size != item.bytes:
            os.close(file)
            self.drop(item)
            return None
        use(file)
        return file

    def _fetched(self, item: Item, ahead: bool) -> int | None:
        """A descriptor of the file, which this call has fetched, or None where that is for others or for later."""
        if item.bytes > self.limit:
            raise UserError(
                f"{redacted(item.url)} has {item.bytes} bytes, more than data.cache_bytes={self.limit}; raise it"
            )
        part_path = self._part_path(item)
        try:
            with self._part(item, ahead) as part:
                if part is None:
                    return None
                try:
                    if (self.folder / item.name).exists():
                        part_path.unlink()
                        return None
                    self._fill(item, part)
                    part_path.replace(self.folder / item.name)
                except (OSError, ChangedError):
                    part_path.unlink(missing_ok=True)
                    raise
                os.lseek(part, 0, os.SEEK_SET)
                return os.dup(part)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _part(self, item: Item, ahead: bool) -> Iterator[int | None]:
        """The locked file that takes the item in, with room for all of it; None where there is none, or others do."""
        path = self._part_path(item)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = None
        with self._lock():
            if path.exists() or self._make_room(item.bytes, time.time() - _RECENT if ahead else math.inf):
                part = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if part is None:
            yield None
            return
        try:
            owned = lock(part, wait=not ahead, owner="file") and has_name(part, path)
            yield part if owned else None
        finally:
            release(part)

    def _fill(self, item: Item, part: int) -> None:
        """Bring the part to the item's bytes. Raises ChangedError where the server has others."""
        begun = os.fstat(part).st_size
        if item.index or begun > item.bytes:  # nothing would tell whether the rest of an index goes with it
            os.truncate(part, 0)
            begun = 0
        found = self._download(item, part)
        if begun and found != item.sha256 and not item.index:
            os.truncate(part, 0)  # what an earlier process had left may be what is wrong
            found = self._download(item, part)
        if found != item.sha256 and not item.index:
            raise _changed(item, "its sha256 is another")
        os.fsync(part)

    def _download(self, item: Item, part: int) -> str:
        """Append what is missing. Returns the sha256 of the whole."""
        digest, length = hashlib.sha256(), 0
        with os.fdopen(part, "r+b", closefd=False) as file:
            file.seek(0)
            while block := file.read(_CHUNK):
                digest.update(block)
                length += len(block)
            if length < item.bytes:
                with RemoteFile(item.url, length) as remote:
                    if remote.size not in (None, item.bytes):
                        raise _changed(item, f"it has {remote.size} bytes, not {item.bytes}")
                    if item.index and remote.etag != item.sha256:
                        raise _changed(item, "it changed a moment ago")
                    while length < item.bytes and (block := remote.read(_CHUNK)):
                        file.write(block)
                        digest.update(block)
                        length += len(block)
        if length != item.bytes:
            raise _changed(item, f"it has {length} bytes, not {item.bytes}")
        return digest.hexdigest()

    def _make_room(self, need: int, before: float) -> bool:
        """Whether there is room for `need` bytes more, after what was used before that time has gone if it must."""
        kept: list[tuple[bool, float, int, Path]] = []
        for entry in os.scandir(self.folder):
            stem, _, kind = entry.name.partition(".")
            if len(stem) == 64:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    size = int(kind.split(".")[-2]) if kind.endswith(_PART[1:]) else status.st_size
                    kept.append((entry.name.endswith(_INDEX), status.st_mtime, size, Path(entry.path)))
        over = sum(size for _, _, size, _ in kept) + need - self.limit
        for _, used, size, path in sorted(kept):
            if over <= 0 or used > before:
                break
            if _removed(path):
                over -= size
        return over <= 0

    @contextmanager
    def _lock(self) -> Iterator[None]:
        file = open_locked(self.folder / "lock", wait=True, owner="file")
        assert file is not None
        try:
            yield
        finally:
            release(file)

    def _part_path(self, item: Item) -> Path:
        return self.folder / f"{item.name}.{item.bytes}{_PART}"

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: remote shards cannot be kept there ({error.strerror}); free some space, lower "
            "data.cache_bytes, or set data.cache to a folder that can be written"
        )


class Remote(NamedTuple):
    """A remote file and the cache that it is read through."""

    cache: Cache
    item: Item

    def open(self) -> int:
        return self.cache.open(self.item)


def _changed(item: Item, what: str) -> ChangedError:
    place = redacted(item.url)
    return ChangedError(
        f"{place}: not the file that was indexed: {what}; restore it there, or, where it is meant to be another, "
        f"run: diffpipe index {place.rpartition('/')[0]}"
    )


def use(file: int) -> None:
    """Note that an open file of the cache is in use now."""
    with suppress(OSError):  # another user's
        os.utime(file)


def _removed(path: Path) -> bool:
    """Remove a file, unless it is a part that somebody is filling."""
    if path.suffix != _PART:
        path.unlink(missing_ok=True)
        return True
    try:
        part = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        idle = lock(part, owner="file") and has_name(part, path)
        if idle:
            path.unlink()
        return idle
    finally:
        release(part)
