"""The file of compressed images: a header, which says what decodes it, and blocks that are decoded independently.

Layout, all integers little-endian: 8 bytes of magic; uint32 version; uint32 length of the header; the sha256 of the
header (32 bytes); the header, JSON compressed by zlib; the blocks, each a message as uint32 words.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt32

from diffpipe.errors import UserError
from diffpipe.files import atomic_file, parse_json, read_regular

MAGIC = b"\x89DPI\r\n\x1a\n"  # as PNG's: a transfer as text changes it
VERSION = 2  # 1 had no steps
_PREFIX = struct.Struct("<8sII32s")
_LONGEST_HEADER = 1 << 30


@dataclass(frozen=True)
class Block:
    """A message and its images.

    groups: the numbers of images that are encoded together, in this order. words: of the message. sha256: of the
    message. pixels_sha256: of its images' pixels, uint8 [n c h w].
    """

    groups: Sequence[int]
    words: int
    sha256: str
    pixels_sha256: str

    @property
    def n(self) -> int:
        """The number of its images."""
        return sum(self.groups)


@dataclass(frozen=True)
class Header:
    """All that decoding needs beside the run.

    stage: the run's kind. checkpoint: the sha256 of its checkpoint's manifest.json. weights: as `Run.weights`.
    coded_on: what the bits of a network's output depend on. shape: [c h w]. keys: the samples' names. labels: one for
    each sample, or None. classes: their names, or None. seed: of the initial bits. steps: of a diffusion's chain; None:
    all.
    """

    stage: str
    checkpoint: str
    weights: str
    coded_on: dict[str, Any]
    shape: Sequence[int]
    keys: Sequence[str]
    labels: Sequence[int] | None
    classes: Sequence[str] | None
    seed: int
    blocks: Sequence[Block]
    steps: int | None = None

    @property
    def dims(self) -> int:
        """The numbers of all images."""
        return int(np.prod(self.shape)) * len(self.keys)


@dataclass(frozen=True)
class CompressedFile:
    """A header and the messages of its blocks."""

    header: Header
    messages: Sequence[UInt32[np.ndarray, " _"]]


def message_sha256(words: UInt32[np.ndarray, " n"]) -> str:
    """The hash of a message."""
    return hashlib.sha256(_to_bytes(words)).hexdigest()


def write_compressed(path: Path, file: CompressedFile) -> int:
    """Write the file, wholly or not at all. Returns its length in bytes. Raises OSError."""
    header = zlib.compress(json.dumps(asdict(file.header), separators=(",", ":")).encode(), 9)
    with atomic_file(path) as out:
        out.write(_PREFIX.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest()) + header)
        for message in file.messages:
            out.write(_to_bytes(message))
        return out.tell()


def read_compressed(path: Path) -> CompressedFile:
    """The file, with every hash of its bytes checked. Raises UserError where it is another file, cut or changed."""
    try:
        content = read_regular(path, follow_links=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that `diffpipe compress` has written") from error
    if content[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: not a file of compressed images; give one that `diffpipe compress` has written")
    if len(content) < _PREFIX.size:
        raise UserError(f"{path}: {_CUT}")
    _, version, length, digest = _PREFIX.unpack_from(content)
    if version > VERSION:
        raise UserError(f"{path}: of format {version}, and this diffpipe reads up to {VERSION}; install a newer one")
    end = _PREFIX.size + length
    if len(content) < end:
        raise UserError(f"{path}: {_CUT}")
    if hashlib.sha256(content[_PREFIX.size : end]).digest() != digest or version < 1:
        raise UserError(f"{path}: its header has other bytes than were written; take another copy")
    header = _header(path, content[_PREFIX.size : end])
    return CompressedFile(header, _messages(path, header, memoryview(content)[end:]))


_CUT = "it ends too early; take another copy, it was cut off"


def _header(path: Path, compressed: bytes) -> Header:
    try:
        tree = {"steps": None} | parse_json(zlib.decompressobj().decompress(compressed, _LONGEST_HEADER))
        blocks = [Block(**block) for block in tree.pop("blocks")]
        header = Header(
            **{field.name: tree[field.name] for field in fields(Header) if field.name != "blocks"}, blocks=blocks
        )
        if sum(block.n for block in blocks) != len(header.keys):
            raise ValueError("its blocks hold another number of images than it names")
    except (zlib.error, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: its header cannot be read ({error}); compress the images again") from error
    return header


def _messages(path: Path, header: Header, content: memoryview) -> list[np.ndarray]:
    messages, start = [], 0
    if len(content) != 4 * sum(block.words for block in header.blocks):
        longer = len(content) > 4 * sum(block.words for block in header.blocks)
        raise UserError(f"{path}: {'it has bytes after its end; take another copy' if longer else _CUT}")
    for number, block in enumerate(header.blocks):
        words = np.frombuffer(content[start : start + 4 * block.words], "<u4").astype(np.uint32)
        if message_sha256(words) != block.sha256:
            raise UserError(f"{path}: block {number} has other bytes than were written; take another copy")
        messages.append(words)
        start += 4 * block.words
    return messages


def _to_bytes(words: UInt32[np.ndarray, " n"]) -> bytes:
    return words.astype("<u4").tobytes()
