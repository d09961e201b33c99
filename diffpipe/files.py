"""Files that several processes share: written whole, locked, hashed, and opened only where they are regular files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shlex
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

NOT_A_FILE = {errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
"""The errors of `open_regular` where something else is there than a file. Others, of a file server say, may pass."""
_LONGEST_INT = 4000  # digits of an integer in JSON; Python reads 4300
_DEEPEST = 100  # levels of JSON
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends without an error.

    Until then it has a temporary name in the same folder, and `path` stays as it was, whenever the process is killed.
    The bytes are on the disk before the name is, unless not `durable`, which is for many small files. Its mode is 0644,
    less the umask. The folder itself is not synced: see `sync` for a name that has to survive a power failure. Raises
    OSError, with the name of the file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(descriptor)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def atomic_write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Make this the content of a file, text in UTF-8: wholly or not at all, as `atomic_file`. Raises OSError."""
    with atomic_file(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def url_scheme(text: str) -> str | None:
    """The beginning of a URL, such as `s3://`; None for a path."""
    match = re.match(r"[A-Za-z][\w+.-]*://", text)
    return match and match[0]


def user_path(path: str | Path) -> Path:
    """The path, with the home directory for a `~` at its start. The shell replaces it only at the start of a word.

    `~` stays where there is no such home directory.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises RuntimeError)


def why_unwritable(folder: Path) -> str | None:
    """The reason why a folder, or one that would be made there, cannot be written, or None. Nothing is written."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        return os.strerror(errno.EEXIST if place == folder else errno.ENOTDIR)
    if os.access(place, os.W_OK | os.X_OK):
        return None
    return os.strerror(errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES)


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, onto the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, *, follow_links: bool = True) -> str:
    """The sha256 of a regular file, in hexadecimal. follow_links: see `open_regular`. Raises OSError."""
    with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: str | Path, *, follow_links: bool = False, own: bool = False) -> int:
    """A descriptor of a regular file, to read from.

    Anything else is refused at once: opening a FIFO would wait for its writer, and reading a device may never end.
    A symbolic link as the last part of `path` is refused, too, unless `follow_links`. own: another user's file is
    refused. Raises OSError, whose `strerror` says what is there instead.
    """
    return _open(path, os.O_RDONLY | (0 if follow_links else os.O_NOFOLLOW), own=own)


def open_writable(path: str | Path, *, mode: int = 0o666, own: bool = False) -> int:
    """A descriptor of a regular file, to read from and to write to, created where it is missing.

    Anything else is refused as by `open_regular`, symbolic links included: they would choose another file to write to.
    own: refused are another user's file, and one with a second name (a hard link). mode: of a new file, less the umask.
    Raises OSError.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, mode, own=own)
    if own and os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "a hard link to another file", str(path))
    return descriptor


def _open(path: str | Path, flags: int, mode: int = 0o666, *, own: bool) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "a symbolic link, not a regular file", str(path)) from error
        if error.errno == errno.ENXIO:  # a socket, or a FIFO that nobody reads
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from error
        raise
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_KINDS.get(kind, 'something else')}, not a regular file", str(path))
    if own and status.st_uid != os.geteuid():
        os.close(descriptor)
        raise OSError(errno.EPERM, "a file of another user", str(path))
    return descriptor


def read_regular(path: Path, *, follow_links: bool = False, limit: int | None = None) -> bytes:
    """The content of a regular file; anything else is refused as by `open_regular`. Raises OSError.

    limit: the most bytes that it may have; a longer file is refused before it is read.
    """
    with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(errno.EFBIG, f"{size} bytes, more than the {limit} that such a file may have", str(path))
        return file.read() if limit is None else file.read(limit)


def parse_json(text: str | bytes) -> Any:
    """The tree of a JSON text. Raises ValueError for any other text, with a message of at most some hundred characters.

    Refused, where Python's own parser is lenient or fails otherwise: a key that comes twice or is no text (half of a
    surrogate pair), NaN and infinities, an integer of thousands of digits, values that are nested too deeply, bytes
    that are not UTF-8.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8", "strict")
        tree = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant, parse_int=_bounded_int)
        _require_shallow(tree)
        return tree
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error


def _require_shallow(tree: Any) -> None:
    """Raise RecursionError for values so deep that Python could not copy or write them again."""
    level = [tree] if isinstance(tree, dict | list) else []
    for _ in range(_DEEPEST):
        values = itertools.chain.from_iterable(v.values() if isinstance(v, dict) else v for v in level)
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise RecursionError


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        repeated = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {repeated[:40]!r} comes twice")
    for key in tree:
        if not key.isascii() and any("\ud800" <= c <= "\udfff" for c in key):
            raise ValueError(f"the key {key[:40]!r} is no text: it holds half of a surrogate pair")
    return tree


def _bounded_int(digits: str) -> int:
    if len(digits) > _LONGEST_INT:
        raise ValueError(f"a number has {len(digits)} digits, and {_LONGEST_INT} are the most")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def user_cache() -> Path:
    """The folder for what diffpipe downloads: ~/.cache/diffpipe, or one of this user's own in the temporary folder.

    A container may run as a user who has no home directory.
    """
    try:
        return Path.home() / ".cache" / "diffpipe"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"diffpipe-{os.geteuid()}"


def private_folder(path: Path) -> None:
    """Make a folder that only this user can enter, unless it is there. Raises OSError where others could change it.

    What is in it can be trusted as far as this user can: the folder belongs to this user and nobody else can write to
    it, and a symbolic link to it is this user's own. The mode of a folder that exists is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, "not a folder", str(path))
    if {status.st_uid, path.lstat().st_uid} != {os.geteuid()}:
        raise OSError(errno.EPERM, "it belongs to another user", str(path))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, f"other users can write to it; run: chmod 700 {shlex.quote(str(path))}", str(path))


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


def open_locked(
    path: Path, *, wait: bool = False, owner: Literal["process", "file"] = "process", own: bool = False
) -> int | None:
    """A descriptor of `path` by `open_writable`, locked: see `lock`. None: another holds it.

    Its holder may remove or replace it: what is returned has the name `path` once it is locked. Raises OSError.
    """
    while True:
        descriptor = open_writable(path, own=own)
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
