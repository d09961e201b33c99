"""The files below a folder or in a zip archive, by relative path. Nothing is extracted."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffpipe.data.decode.image_files import is_hidden
from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.errors import UserError
from diffpipe.files import open_regular

_UNBOUNDED = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Folder:
    """The files below a folder, without hidden ones. Links are followed.

    paths: relative, with "/", sorted by their parts. top: the names of the folders directly in it.
    """

    def __init__(self, root: Path):
        self.root = root
        entries = [*_walk(root, "")]
        self.top = sorted({path.split("/")[0] for path, is_folder in entries if is_folder})
        self.paths = in_order(path for path, is_folder in entries if not is_folder)

    def where(self, path: str) -> str:
        return str(self.root / path)

    def read(self, path: str) -> bytes:
        """Raises UserError."""
        file = self.root / path
        try:
            if not file.is_file():
                raise UserError(f"{file}: no such file; correct the path, or remove its row")
            _require_size(str(file), file.stat().st_size)
            return file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


class Zip:
    """The files of a zip archive, read in place. If a single folder contains everything, paths are relative to it.

    paths and top are as in `Folder`. Nothing is extracted, so names cannot lead out of a folder. It pickles as its
    path.
    """

    def __init__(self, root: Path):
        self.root = root
        try:
            self._archive = zipfile.ZipFile(_PositionedFile(root))
        except (OSError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
            # ValueError: a name that is not UTF-8. RuntimeError: a version of the format that Python does not know
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{root}: not a whole zip archive ({reason}); download or write it again") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        folders: list[list[str]] = []
        files: list[tuple[list[str], zipfile.ZipInfo]] = []
        for info in self._archive.infolist():
            name = info.filename.replace("\\", "/")  # as some programs on Windows write it
            _require_plain(str(root), name)
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            if not parts or any(is_hidden(part) for part in parts):
                continue
            if name.endswith("/"):
                folders.append(parts)
            else:
                files.append((parts, info))
        tops = {parts[0] for parts in folders} | {parts[0] for parts, _ in files}
        skip = 1 if len(tops) == 1 and all(len(parts) > 1 for parts, _ in files) else 0
        for parts, info in files:
            path = "/".join(parts[skip:])
            if path in self._entries:
                raise UserError(f"{root}: {path} comes twice; write the archive again with unique names")
            self._entries[path] = info
        inner = [parts[skip:] for parts in folders] + [parts[skip:-1] for parts, _ in files]
        self.top = sorted({parts[0] for parts in inner if parts})
        self.paths = in_order(self._entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return Zip, (self.root,)

    def where(self, path: str) -> str:
        return f"{self.root}: {path}"

    def read(self, path: str) -> bytes:
        """The content of a file, checked against its crc32. Raises UserError.

        No more than the archive says is decompressed: a few bytes may hold gigabytes.
        """
        where, info = self.where(path), self._entries.get(path)
        if info is None:
            raise UserError(f"{where}: not in the archive; correct the path, or remove its row")
        _require_size(where, info.file_size)
        if info.compress_type in _UNBOUNDED:
            raise UserError(
                f"{where}: compressed with {_UNBOUNDED[info.compress_type]}, of which a few bytes may hold gigabytes; "
                "write the archive again with deflate or without compression, as zip does"
            )
        try:
            with self._archive.open(info) as file:
                return file.read(info.file_size + 1)  # with a length, zipfile decompresses so much at most
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            # RuntimeError: encrypted, or compressed in a way that this Python was built without
            raise UserError(
                f"{where}: cannot be read ({error}); write the archive again without it, or repair it"
            ) from error


def in_order(paths: Iterable[str]) -> list[str]:
    """The paths sorted by their parts."""
    return sorted(paths, key=lambda path: path.split("/"))


def _walk(folder: Path, prefix: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Relative paths, and whether each is a folder. A link to a folder above it is not followed."""
    try:
        entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in entries:
        _require_plain(str(folder), entry.name)
        path = prefix + entry.name
        if entry.is_dir():
            yield path, True
            yield from _walk(folder / entry.name, f"{path}/", (*above, real))
        else:
            yield path, False


def _require_plain(where: str, name: str) -> None:
    if _CONTROL.search(name):
        raise UserError(f"{where}: {name[:80]!r}: the name has control characters; give the file a plain name")


def _require_size(where: str, size: int) -> None:
    if size > MAX_MEMBER:
        raise UserError(f"{where}: {size} bytes, more than {MAX_MEMBER}; make the image smaller or remove it")


class _PositionedFile(io.RawIOBase):
    """A file with a position of its own, read by `os.pread`: forked workers may share the descriptor."""

    def __init__(self, path: Path):
        self._file = open_regular(path, follow_links=True)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self._file).st_size}[whence]
        if start + offset < 0:
            raise OSError(22, "a position before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._file, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
