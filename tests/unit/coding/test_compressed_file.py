"""The file: what is written is read, and every other file is refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from diffpipe.coding.compressed_file import (
    _PREFIX,
    MAGIC,
    Block,
    CompressedFile,
    Header,
    message_sha256,
    read_compressed,
    require_room,
    write_compressed,
)
from diffpipe.errors import UserError

WORDS = [np.arange(1, 9, dtype=np.uint32), np.array([7], np.uint32)]


def compressed(**changes: object) -> CompressedFile:
    blocks = [Block((1, 2), 8, message_sha256(WORDS[0]), "a" * 64), Block((1,), 1, message_sha256(WORDS[1]), "b" * 64)]
    header = Header(
        stage="vae",
        checkpoint="0" * 64,
        weights="ema 0.1",
        coded_on={"device": "cpu"},
        shape=(1, 8, 8),
        keys=["a", "b/c", "d", "ü"],
        labels=[0, 3, 1, 2],
        classes=None,
        seed=5,
        blocks=blocks,
    )
    return CompressedFile(dataclasses.replace(header, **changes), WORDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "images.dpi"
    assert write_compressed(path, compressed()) == path.stat().st_size
    return path


def test_a_file_is_read_as_it_was_written(path: Path) -> None:
    file = read_compressed(path)
    header = compressed().header
    assert dataclasses.replace(file.header, blocks=()) == dataclasses.replace(header, shape=[1, 8, 8], blocks=())
    assert [dataclasses.replace(block, groups=tuple(block.groups)) for block in file.header.blocks] == header.blocks
    assert all(np.array_equal(a, b) for a, b in zip(file.messages, WORDS, strict=True))
    assert file.header.dims == 4 * 64


def test_the_same_images_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_compressed(tmp_path / "again.dpi", compressed())
    assert (tmp_path / "again.dpi").read_bytes() == path.read_bytes()


def test_a_file_of_the_first_format_is_of_the_whole_chain(path: Path) -> None:
    content = path.read_bytes()
    end = _PREFIX.size + _PREFIX.unpack_from(content)[2]
    tree = json.loads(zlib.decompress(content[_PREFIX.size : end]))
    del tree["steps"]
    header = zlib.compress(json.dumps(tree).encode())
    prefix = _PREFIX.pack(MAGIC, 1, len(header), hashlib.sha256(header).digest())
    path.write_bytes(prefix + header + content[end:])
    assert read_compressed(path).header.steps is None


def test_a_file_that_is_cut_anywhere_is_refused(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"it ends too early|not a file of compressed images"):
            read_compressed(path)


def test_a_flipped_bit_is_refused_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError) as raised:
            read_compressed(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


def changed_version(content: bytes) -> bytes:
    return content[:8] + struct.pack("<I", 3) + content[12:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: b"P" + content, "not a file of compressed images"),
        (lambda content: b"", "not a file of compressed images"),
        (changed_version, "of format 3, and this diffpipe reads up to 2; install a newer one"),
        (lambda content: content + b"\0", "it has bytes after its end"),
        (lambda content: content[:-4] + b"\1\0\0\0", "block 1 has other bytes than were written"),
        (lambda content: MAGIC + content[8:60] + b"x" + content[61:], "its header has other bytes than were written"),
    ],
)
def test_another_file_is_refused(path: Path, change: object, words: str) -> None:
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=words):
        read_compressed(path)


def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.dpi"
    write_compressed(path, compressed(keys=["a"]))
    with pytest.raises(UserError, match="its blocks hold another number of images than it names"):
        read_compressed(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a file that `diffpipe compress` has written"):
        read_compressed(tmp_path / "none")


def write_forged(path: Path, text: bytes) -> None:
    """A file with this header, whose hash is right, and without messages."""
    header = zlib.compress(text)
    path.write_bytes(struct.pack("<8sII32s", MAGIC, 1, len(header), hashlib.sha256(header).digest()) + header)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint", []),
        ("weights", "ema nan"),
        ("weights", "ema 0.1\n"),
        ("coded_on", []),
        ("shape", [1, 8]),
        ("shape", [1, 8.0, 8]),
        ("shape", [1, -8, -8]),
        ("keys", []),
        ("keys", ["a", "b", "c", 4]),
        ("labels", [0, 3, 1, True]),
        ("labels", [0, 3, 1, -1]),
        ("labels", 5),
        ("classes", "abc"),
        ("classes", [1]),
        ("seed", 1.5),
        ("steps", "2"),
        *(
            ("blocks", [{"groups": groups, "words": 1, "sha256": "", "pixels_sha256": ""}])
            for groups in ([-1, 5], [0, 4], [4.0], ["4"], [True] * 4, 4, [1 << 17])
        ),
    ],
)
def test_a_header_that_is_forged_is_refused(tmp_path: Path, name: str, value: object) -> None:
    path, tree = tmp_path / "images.dpi", dataclasses.asdict(compressed().header)
    write_forged(path, json.dumps(tree | {name: value}).encode())
    with pytest.raises(
        UserError, match=rf"its header cannot be read \(its {name} cannot be\); compress the images again"
    ):
        read_compressed(path)


@pytest.mark.parametrize("text", [b"[]", b"5", b'{"blocks": 5}', b"[" * 10**6, b"{}"])
def test_what_is_no_header_is_refused(tmp_path: Path, text: bytes) -> None:
    write_forged(tmp_path / "images.dpi", text)
    with pytest.raises(UserError, match="its header cannot be read"):
        read_compressed(tmp_path / "images.dpi")


def test_what_is_larger_than_it_says_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "images.dpi"
    write_compressed(path, compressed())
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match="it has bytes after its end"):
        read_compressed(path)
    write_forged(path, b"[" + b"0," * (1 << 26) + b"0]")
    with pytest.raises(UserError, match=r"its header cannot be read \(it is longer than"):
        read_compressed(path)
    with pytest.raises(UserError, match="1000 images: more than one file can name; compress them in parts"):
        require_room(["x" * 70_000] * 1000)
