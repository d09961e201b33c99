"""One tar, read through once: where its members lie and what they hash to."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from diffpipe.contract import UserError

_BLOCK = 512
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_META = re.compile(r"__[^/]*__($|/)")


@dataclass
class Scan:
    """The members of one tar, grouped into samples, in the order of the archive.

    members: (extension, offset of the data, size, crc32) of each; first: index of each sample's first member.
    classes: 1 + the largest `.cls`, or None where a sample has none or one is not an integer ≥ 0.
    """

    bytes: int
    sha256: str
    keys: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    members: list[tuple[str, int, int, int]] = field(default_factory=list)
    classes: int | None = None


def scan(path: str) -> Scan:
    """Read a local, uncompressed tar through, without extracting it.

    Raises UserError that names the tar, the member and the remedy where it is not a WebDataset shard whose samples can
    each be read alone: damaged or cut, compressed, links, unsafe names, or a key whose members do not stand together.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            for magic, name in _COMPRESSED.items():
                if head.startswith(magic):
                    raise UserError(
                        f"{path}: compressed with {name}, so no sample in it can be read alone; decompress it first"
                    )
            file.seek(0)
            result = Scan(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=file.tell())
            file.seek(0)
            end = _members(path, file, result)
            _check_end(path, file, end)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not result.keys:
        raise UserError(f"{path}: holds no samples; its files should be named KEY.EXTENSION, such as 0001.png")
    return result


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, by WebDataset's rule: the key ends at the first dot of the base name.

    The extension is in lower case. None for a name without a key or extension, such as a hidden file's, and for
    `__meta__`, which the webdataset library does not read either.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or not extension or _META.match(name):
        return None
    return folder + slash + stem, extension.lower()


def parse_class(data: bytes) -> int | None:
    """The class that a `.cls` member holds, or None where it is not an integer ≥ 0."""
    text = data.strip()
    return int(text) if text.isdigit() else None


def _members(path: str, file: BinaryIO, result: Scan) -> int:
    """Fill in `result`. Returns the offset at which the archive's end should begin."""
    end = 0
    seen: set[str] = set()
    extensions: set[str] = set()
    classes: list[int | None] = []
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for info in tar:
                if info.isdir():
                    end = info.offset_data
                    continue
                _check_member(path, info)
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                parts = split_name(info.name)
                if parts is None:
                    continue
                key, extension = parts
                if not result.keys or key != result.keys[-1]:
                    if key in seen:
                        raise UserError(
                            f"{path}: {info.name}: the members of {key} do not stand together, or the key comes twice; "
                            "write the tar anew with sorted and unique names (tar --sort=name)"
                        )
                    seen.add(key)
                    extensions.clear()
                    result.keys.append(key)
                    result.first.append(len(result.members))
                if extension in extensions:
                    raise UserError(f"{path}: {info.name} comes twice; write the tar anew with unique names")
                extensions.add(extension)
                file.seek(info.offset_data)
                data = file.read(info.size)
                if len(data) < info.size:
                    raise _damaged(path, f"it ends within {info.name}")
                result.members.append((extension, info.offset_data, info.size, zlib.crc32(data)))
                if extension == "cls":
                    classes.append(parse_class(data))
    except tarfile.TarError as error:
        raise _damaged(path, str(error)) from error
    numbers = [number for number in classes if number is not None]
    result.classes = max(numbers) + 1 if numbers and len(numbers) == len(result.keys) else None
    return end


def _check_member(path: str, info: tarfile.TarInfo) -> None:
    if info.issym() or info.islnk():
        raise UserError(f"{path}: {info.name} is a link; write the tar anew with the file itself (tar --dereference)")
    if not info.isreg() or info.issparse():
        raise UserError(f"{path}: {info.name} is not a plain file; write the tar anew with plain files alone")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise UserError(f"{path}: {info.name}: the name leaves the folder; write the tar anew with relative names")


def _check_end(path: str, file: BinaryIO, end: int) -> None:
    """After the last member a whole archive has two blocks of zeros or more, up to the end of the file.

    `tarfile` takes a missing end, a damaged header or a zeroed one for the end of the archive, without a word.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(min(end, size))
    if size - end < 2 * _BLOCK:
        raise _damaged(path, "its end is missing")
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise _damaged(path, f"there is no valid header after byte {end}, but more data")


def _damaged(path: str, what: str) -> UserError:
    return UserError(f"{path}: not a whole, plain tar: {what}; copy or write it anew")
