"""Files whose sha256 was checked, and that have not changed since then: they need not be read through again.

A shard has a gigabyte or so, and every loader process opens it. So the sha256 is recorded in an extended attribute of
the file itself, with the file's inode, length and time of last change: a file that was written to, copied or replaced
has others. Where the file system has no extended attributes, each process reads the file through once.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress

_ATTRIBUTE = "user.diffpipe.sha256"

_checked: dict[str, str] = {}  # by the identity of a file; for file systems without attributes


def has_sha256(descriptor: int, sha256: str) -> bool:
    """Whether an open file has this sha256. Raises OSError."""
    if _recorded(descriptor) == sha256:
        return True
    if _digest(descriptor) != sha256:
        return False
    record(descriptor, sha256)
    return True


def is_unchanged(descriptor: int) -> bool:
    """Whether an open file has the sha256 that was recorded; True where the file system keeps no records."""
    try:
        sha256 = os.getxattr(descriptor, _ATTRIBUTE).decode("ascii", "replace").partition(" ")[0]
    except OSError as error:
        return error.errno == errno.ENOTSUP
    return has_sha256(descriptor, sha256)


def record(descriptor: int, sha256: str) -> None:
    """Record that an open file has this sha256 now."""
    identity = _identity(descriptor)
    _checked[identity] = sha256
    with suppress(OSError):  # the file system has no extended attributes
        os.setxattr(descriptor, _ATTRIBUTE, f"{sha256} {identity}".encode())


def _recorded(descriptor: int) -> str | None:
    """The sha256 that was recorded, unless the file has changed since then."""
    identity = _identity(descriptor)
    try:
        sha256, _, recorded = os.getxattr(descriptor, _ATTRIBUTE).decode("ascii", "replace").partition(" ")
    except OSError:
        return _checked.get(identity)
    return sha256 if recorded == identity else None


def _identity(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _digest(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
