"""A scan of one tar: where its members are, and their hashes. Nothing is extracted or unpickled."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from array import array
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from diffpipe.data.index.tar_stream import BLOCK, Readable, TarStream, damaged, headers
from diffpipe.errors import UserError
from diffpipe.files import open_regular

MAX_MEMBER = 256 << 20
_METADATA = re.compile(r"__[^/]*__($|/)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_EXTENSIONS = 256
CLASS_DIGITS = 18  # an int64 holds them


class Scan(NamedTuple):
    """The members of one tar, grouped into samples, in the order of the archive.

    classes: 1 + the largest `.cls`, or None where a sample has none or one is not an integer ≥ 0. end: the offset of
    the archive's end marker. columns: those of an index (see write_index.py), counting key bytes and members from the
    beginning of this shard, with extensions numbered as in `extensions`. starts: the offset of each sample's first
    header, int64 [samples].
    """

    bytes: int
    sha256: str
    classes: int | None
    end: int
    extensions: list[str]
    columns: dict[str, np.ndarray]
    starts: np.ndarray


def scan(path: str, max_member: int = MAX_MEMBER) -> Scan:
    """Read a local, uncompressed tar through. Raises UserError: see `scan_file`."""
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb", buffering=0) as file:
            return scan_file(file, path, max_member)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def scan_file(file: Readable, where: str, max_member: int = MAX_MEMBER) -> Scan:
    """Read an uncompressed tar from its beginning to its end, once, without seeking back.

    Memory: some tens of bytes per member, no content. Raises UserError, which begins with `where` and names the member
    and the remedy, unless it is a WebDataset shard in which each sample can be read alone. So these are refused:
    damage, compression, links, unsafe names, members of more than `max_member` bytes, members of a key that are not
    adjacent.
    """
    stream = TarStream(file, where)
    samples = _SampleColumns(where)
    end = 0
    for info in headers(stream, where):
        if info.size < 0 or info.offset < end:
            raise damaged(where, f"the header of {info.name} is wrong")
        if info.isdir():
            end = info.offset_data
            continue
        _check_member(where, info, max_member)
        start, end = info.offset, info.offset_data + -(-info.size // BLOCK) * BLOCK
        parts = split_name(info.name)
        if parts is None:
            continue
        crc32, content = _read_member(stream, where, info, keep=parts[1] == "cls" and info.size <= BLOCK)
        samples.add(info, parts, start, crc32, content)
    size = stream.drain()
    # tarfile takes a missing end, a damaged header or a zeroed one for the end of the archive
    if size - end < 2 * BLOCK:
        raise damaged(where, "its end is missing")
    if stream.last > end:
        raise damaged(where, f"there is no valid header after byte {end}, but more data")
    return samples.finish(size, stream.sha256.hexdigest(), end)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, by WebDataset's rule: the key ends at the first dot of the base name.

    The extension is in lower case. None for a name without a key or extension, such as a hidden file's, and for
    `__meta__`, which the webdataset library does not read either.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or _METADATA.match(name):
        return None
    return folder + slash + stem, extension.lower()


def dotted_names(extensions: Iterable[str], known: Collection[str]) -> str | None:
    """A sentence on names with a dot in the key, where one of the extensions is such a name's end and a known one."""
    for extension in extensions:
        if "." in extension and extension.rpartition(".")[2] in known:
            return (
                f"names such as KEY.{extension} have a dot in the key: by WebDataset's rule it ends at the first dot, "
                f"so the member is .{extension} and no .{extension.rpartition('.')[2]}; write the tar again without it"
            )
    return None


def parse_class(data: bytes) -> int | None:
    """The class that a `.cls` member holds, or None where it is not an integer ≥ 0 of at most 18 digits."""
    text = data.strip()
    return int(text) if text.isdigit() and len(text) <= CLASS_DIGITS else None


class _SampleColumns:
    """The columns of a scan, filled member by member."""

    def __init__(self, where: str):
        self.where = where
        self.keys, self.key_end, self.hashes = bytearray(), array("q"), array("q")
        self.starts, self.first = array("q"), array("q")
        self.extension, self.offset, self.size, self.crc32 = array("B"), array("q"), array("q"), array("I")
        self.numbers: dict[str, int] = {}
        self.key: str | None = None
        self.key_extensions: set[str] = set()
        self.labelled, self.largest = 0, -1

    def add(self, info: tarfile.TarInfo, parts: tuple[str, str], start: int, crc32: int, content: bytes) -> None:
        key, extension = parts
        if key != self.key:
            self.key = key
            self.key_extensions.clear()
            self.starts.append(start)
            self.first.append(len(self.size))
            self.keys += key.encode("utf-8", "surrogateescape")
            self.key_end.append(len(self.keys))
            self.hashes.append(hash(key))
        if extension in self.key_extensions:
            raise UserError(f"{self.where}: {info.name} comes twice; write the tar again with unique names")
        self.key_extensions.add(extension)
        number = self.numbers.setdefault(extension, len(self.numbers))
        if number == _MAX_EXTENSIONS:
            raise UserError(
                f"{self.where}: more than {_MAX_EXTENSIONS} extensions, the last of them .{extension}; "
                "name the members KEY.EXTENSION, without dots in KEY"
            )
        self.extension.append(number)
        self.offset.append(info.offset_data)
        self.size.append(info.size)
        self.crc32.append(crc32)
        if extension == "cls":
            label = parse_class(content)
            self.labelled += label is not None
            self.largest = max(self.largest, -1 if label is None else label)

    def finish(self, size: int, sha256: str, end: int) -> Scan:
        if not self.starts:
            raise UserError(
                f"{self.where}: holds no samples; its files should be named KEY.EXTENSION, such as 0001.png"
            )
        self._check_unique()
        columns = {
            "key.bytes": np.frombuffer(self.keys, dtype=np.uint8),
            "key.end": np.frombuffer(self.key_end, dtype=np.int64),
            "sample.first_member": np.frombuffer(self.first, dtype=np.int64),
            "member.extension": np.frombuffer(self.extension, dtype=np.uint8),
            "member.offset": np.frombuffer(self.offset, dtype=np.int64),
            "member.size": np.frombuffer(self.size, dtype=np.int64),
            "member.crc32": np.frombuffer(self.crc32, dtype=np.uint32),
        }
        classes = self.largest + 1 if self.labelled == len(self.starts) else None
        starts = np.frombuffer(self.starts, dtype=np.int64)
        return Scan(size, sha256, classes, end, list(self.numbers), columns, starts)

    def _check_unique(self) -> None:
        """Raise UserError where a key comes twice.

        Hashes of 8 bytes per key find the candidates: a set of all keys would take a hundred bytes for each.
        """
        hashes = np.frombuffer(self.hashes, dtype=np.int64)
        values, counts = np.unique(hashes, return_counts=True)
        seen: set[bytes] = set()
        for i in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
            key = bytes(self.keys[self.key_end[i - 1] if i else 0 : self.key_end[i]])
            if key in seen:
                text = key.decode("utf-8", "surrogateescape")
                extension = list(self.numbers)[self.extension[self.first[i]]]
                raise UserError(
                    f"{self.where}: {text}.{extension}: the members of {text} are not adjacent, or the key comes "
                    "twice; write the tar again with sorted and unique names (tar --sort=name)"
                )
            seen.add(key)


def _read_member(stream: TarStream, where: str, info: tarfile.TarInfo, keep: bool) -> tuple[int, bytes]:
    """The crc32 of a member, and its bytes if `keep`."""
    stream.seek(info.offset_data)
    crc32, left, kept = 0, info.size, b""
    for piece in stream.views(info.size):
        crc32 = zlib.crc32(piece, crc32)
        left -= len(piece)
        kept += piece if keep else b""
    if left:
        raise damaged(where, f"it ends within {info.name}")
    return crc32, kept


def _check_member(where: str, info: tarfile.TarInfo, max_member: int) -> None:
    if _CONTROL.search(info.name):
        raise UserError(
            f"{where}: {info.name!r}: the name has control characters; write the tar again with plain names"
        )
    if info.issym() or info.islnk():
        raise UserError(f"{where}: {info.name} is a link; write the tar again with the file itself (tar --dereference)")
    if not info.isreg() or info.issparse():
        raise UserError(f"{where}: {info.name} is not a plain file; write the tar again with plain files alone")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"{where}: {info.name}: the name leaves the folder; write the tar again with relative names")
    if info.size > max_member:
        raise UserError(
            f"{where}: {info.name} has {info.size} bytes, more than the {max_member} that a member may have; "
            "leave it out of the tar, or allow it with --max-member"
        )
