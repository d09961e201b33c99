"""The file of compressed images: a header, which says what decodes it, and blocks that are decoded independently.

Layout, all integers little-endian: 8 bytes of magic; uint32 version; uint32 length of the header; the sha256 of the
header (32 bytes); the header, JSON compressed by zlib; the blocks, each a message as uint32 words.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt32

from diffpipe.errors import UserError
from diffpipe.files import atomic_file, open_regular, parse_json
from diffpipe.plural import plural

MAGIC = b"\x89DPI\r\n\x1a\n"  # as PNG's: a transfer as text changes it
VERSION = 2  # 1 had no steps
_PREFIX = struct.Struct("<8sII32s")
_LONGEST_HEADER = 1 << 26
"""Bytes of the header's JSON: two million names. Parsed, it takes 25 times as much memory at the most."""
LARGEST_GROUP = 1 << 16
_LARGEST_LABEL, _MOST_WORDS = 1 << 31, 1 << 60
_WEIGHTS = re.compile(r"raw|ema( [0-9]+(\.[0-9]+)?(e-?[0-9]+)?)?")


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


def require_room(keys: Sequence[str]) -> None:
    """Raise UserError where a header cannot name so many samples."""
    if len(json.dumps(keys)) + 16 * len(keys) > _LONGEST_HEADER:  # their labels and blocks, too
        raise UserError(f"{plural(len(keys), 'image')}: more than one file can name; compress them in parts")


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
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that `diffpipe compress` has written") from error


def _read(path: Path, file: BinaryIO, size: int) -> CompressedFile:
    """size: of the file in bytes. No more is read than the parts before it call for."""
    prefix = file.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: not a file of compressed images; give one that `diffpipe compress` has written")
    if len(prefix) < _PREFIX.size:
        raise UserError(f"{path}: {_CUT}")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version > VERSION:
        raise UserError(f"{path}: of format {version}, and this diffpipe reads up to {VERSION}; install a newer one")
    end = _PREFIX.size + length
    if size < end:
        raise UserError(f"{path}: {_CUT}")
    compressed = file.read(min(length, _LONGEST_HEADER))
    if hashlib.sha256(compressed).digest() != digest or version < 1:
        raise UserError(f"{path}: its header has other bytes than were written; take another copy")
    header = _header(path, compressed)
    expected = 4 * sum(block.words for block in header.blocks)
    if size - end != expected:
        longer = size - end > expected
        raise UserError(f"{path}: {'it has bytes after its end; take another copy' if longer else _CUT}")
    return CompressedFile(header, _messages(path, header, file.read(expected)))


_CUT = "it ends too early; take another copy, it was cut off"


def _header(path: Path, compressed: bytes) -> Header:
    try:
        text = zlib.decompressobj().decompress(compressed, _LONGEST_HEADER + 1)
        if len(text) > _LONGEST_HEADER:
            raise ValueError(f"it is longer than {_LONGEST_HEADER} bytes")
        tree = {"steps": None} | parse_json(text)
        _check(tree)
        blocks = [Block(**block) for block in tree["blocks"]]
        values: dict[str, Any] = {field.name: tree[field.name] for field in fields(Header)}
        values["blocks"] = blocks
        header = Header(**values)
        if sum(block.n for block in blocks) != len(header.keys):
            raise ValueError("its blocks hold another number of images than it names")
        if header.labels is not None and len(header.labels) != len(header.keys):
            raise ValueError("it has another number of labels than of images")
    except (zlib.error, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: its header cannot be read ({error}); compress the images again") from error
    return header


def _check(tree: Mapping[str, Any]) -> None:
    """Raise ValueError where a part of a header is none that is written. KeyError and TypeError: it is no header."""
    fits = {
        "stage": _are_texts([tree["stage"]]),
        "checkpoint": _are_texts([tree["checkpoint"]]),
        "weights": _are_texts([tree["weights"]]) and _WEIGHTS.fullmatch(tree["weights"]) is not None,
        "coded_on": isinstance(tree["coded_on"], dict),
        "shape": _are_whole(tree["shape"], 1, 1 << 16) and len(tree["shape"]) == 3,
        "keys": _are_texts(tree["keys"]) and tree["keys"] != [],
        "labels": tree["labels"] is None or _are_whole(tree["labels"], 0, _LARGEST_LABEL),
        "classes": tree["classes"] is None or _are_texts(tree["classes"]),
        "seed": type(tree["seed"]) is int,
        "steps": tree["steps"] is None or type(tree["steps"]) is int,
        "blocks": all(
            _are_whole(block["groups"], 1, LARGEST_GROUP) and _are_whole([block["words"]], 0, _MOST_WORDS)
            for block in tree["blocks"]
        ),
    }
    if wrong := [name for name, right in fits.items() if not right]:
        raise ValueError(f"its {wrong[0]} cannot be")


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_whole(values: object, least: int, most: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def _messages(path: Path, header: Header, content: bytes) -> list[np.ndarray]:
    messages, start = [], 0
    for number, block in enumerate(header.blocks):
        words = np.frombuffer(content, "<u4", block.words, start).astype(np.uint32)
        if message_sha256(words) != block.sha256:
            raise UserError(f"{path}: block {number} has other bytes than were written; take another copy")
        messages.append(words)
        start += 4 * block.words
    return messages


def _to_bytes(words: UInt32[np.ndarray, " n"]) -> bytes:
    return words.astype("<u4").tobytes()
