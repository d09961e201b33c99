"""The headers of a tar that is read once, from its beginning to its end, from a file that need not seek."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from diffpipe.errors import UserError

BLOCK = 512
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@runtime_checkable
class Readable(Protocol):
    """A file that can be read from its beginning to its end: all that a scan needs."""

    def read(self, size: int, /) -> bytes: ...


class TarStream:
    """A file that is read once and in order, with the interface that `tarfile` needs. All its bytes are hashed.

    last: the offset after the last byte that is not zero.
    """

    def __init__(self, file: Readable, where: str):
        self.file, self.where = file, where
        self.sha256 = hashlib.sha256()
        self.last = 0
        self._chunk, self._start, self._at = memoryview(b""), 0, 0

    def tell(self) -> int:
        return self._start + self._at

    def seek(self, position: int) -> None:
        if position < self.tell():
            raise tarfile.ReadError("a header points back")
        for _ in self.views(position - self.tell()):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return b"".join(self.views(size))

    def views(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, or as many as there are, piece by piece. Each is valid until the next one."""
        while size > 0 and (self._at < len(self._chunk) or self._read_chunk()):
            piece = self._chunk[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def drain(self) -> int:
        """Read to the end. Returns the length of the file."""
        while self._read_chunk():
            pass
        return self._start + len(self._chunk)

    def _read_chunk(self) -> bool:
        data = self.file.read(_CHUNK)
        if not data:
            return False
        self._start += len(self._chunk)
        self._chunk, self._at = memoryview(data), 0
        if not self._start:
            for magic, name in _COMPRESSED.items():
                if data.startswith(magic):
                    raise UserError(
                        f"{self.where}: compressed with {name}, so no sample in it can be read alone; "
                        "decompress it first"
                    )
        self.sha256.update(data)
        used = len(data.rstrip(b"\0"))
        self.last = self._start + used if used else self.last
        return True


def headers(stream: TarStream, where: str) -> Iterator[tarfile.TarInfo]:
    """The headers in order. Raises UserError for any of the errors that `tarfile` raises over a damaged one."""
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[arg-type]
            while (info := tar.next()) is not None:
                yield info
                tar.members.clear()  # otherwise it would keep all of them
    except UserError:
        raise
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise damaged(where, str(error)) from error


def damaged(where: str, what: str) -> UserError:
    return UserError(f"{where}: not a whole, plain tar: {what}; copy or write it again")
