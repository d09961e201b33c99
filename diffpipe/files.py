"""Files that several processes share: written whole, locked, hashed, and opened only where they are regular files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends without an error.

    Until then it has a temporary name in the same folder, and `path` stays as it was, whenever the process is killed.
    The bytes are on the disk before the name is. Its mode is 0644, less the umask. The folder itself is not synced: see
    `sync` for a name that has to survive a power failure. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: str | bytes) -> None:
    """Make this the content of a file, text in UTF-8: wholly or not at all, as `atomic_file`. Raises OSError."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, onto the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The sha256 of a regular file, in hexadecimal. Raises OSError."""
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: str | Path, *, follow_links: bool = False) -> int:
    """A descriptor of a regular file, to read from.

    Anything else is refused at once: opening a FIFO would wait for its writer, and reading a device may never end.
    A symbolic link as the last part of `path` is refused, too, unless `follow_links`. Raises OSError, whose `strerror`
    says what is there instead.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise OSError(errno.ELOOP, "a symbolic link, not a regular file", str(path)) from error
        raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'something else')}, not a regular file", str(path))
    return descriptor


def read_regular(path: Path, *, follow_links: bool = False) -> bytes:
    """The content of a regular file; anything else is refused as by `open_regular`. Raises OSError."""
    with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
        return file.read()


def lock(descriptor: int, *, wait: bool = False, owner: Literal["process", "file"] = "process") -> bool:
    """Lock an open file exclusively, until the owner ends in whatever way. False: another holds it, and not `wait`.

    owner="process" is a record lock (fcntl). Children that are forked while it is held do not hold it, so it ends with
    this process even if they live on. It does not exclude other threads of this process, and it ends when the process
    closes any descriptor of the file.

    owner="file" is a lock of the open file (flock). It excludes other threads, too. Forked children share it: closing
    the descriptor does not end it while they live, but `release` does.

    The library filelock has the second kind only, and locks a file by its name: a worker that outlives its parent would
    hold the lock, and a file that is locked while it is filled could not be renamed. Raises OSError where the file
    system has no locks.
    """
    operation = fcntl.lockf if owner == "process" else fcntl.flock
    try:
        operation(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def open_locked(path: Path, *, wait: bool = False, owner: Literal["process", "file"] = "process") -> int | None:
    """A descriptor of `path`, created where it is missing, and locked: see `lock`. None: another holds it.

    Its holder may remove or replace it: what is returned has the name `path` once it is locked. Raises OSError.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            locked = lock(descriptor, wait=wait, owner=owner)
            if locked and has_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:
            return None


def release(descriptor: int) -> None:
    """End a lock of either kind and close the file."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: children may have the file open
    os.close(descriptor)


def has_name(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name: it may have been removed or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
