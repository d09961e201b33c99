"""Malformed tars of every kind: each is refused by name, or read correctly."""

from __future__ import annotations

import gzip
import io
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data.index.scan import scan
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from diffpipe.data.index.summary import notes
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_tar

FILES = {f"a/{i:03d}.{e}": bytes([i]) * (500 + 7 * i) for i in range(5) for e in ("png", "cls")}


def special(kind: bytes):
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
            info = tarfile.TarInfo("b.png")
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)

    return write


def edited(edit: Callable[[bytearray], bytes | bytearray]):
    def write(path: Path) -> None:
        data = bytearray(write_tar(path, FILES).read_bytes())
        path.write_bytes(edit(data))

    return write


def members(files: dict[str, bytes] | list[tuple[str, bytes]]):
    return lambda path: write_tar(path, files)


def header_of(data: bytearray, i: int) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[i].offset


def with_checksum(data: bytearray, at: int) -> bytearray:
    total = sum(data[at : at + 148] + data[at + 156 : at + 512]) + 8 * ord(" ")
    data[at + 148 : at + 156] = b"%06o\0 " % total
    return data


def zeroed_header(data: bytearray) -> bytearray:
    at = header_of(data, 4)
    data[at : at + 512] = bytes(512)
    return data


def damaged_header(data: bytearray) -> bytearray:
    data[header_of(data, 4) + 10] ^= 1
    return data


def negative_size(data: bytearray) -> bytearray:
    at = header_of(data, 4)
    data[at + 124 : at + 136] = b"\xff" * 4 + struct.pack(">q", -1024)
    return with_checksum(data, at)


def huge_header(data: bytearray) -> bytearray:
    data[124:136] = b"77777777777\0"
    data[156:157] = tarfile.XHDTYPE
    return with_checksum(data, 0)


def many_headers(data: bytearray) -> bytearray:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    return bytearray(info.tobuf()) * 5000 + data


def sparse(posix: str):
    def write(path: Path) -> None:
        with (path.parent / "a.png").open("wb") as file:
            file.truncate(1 << 20)
            file.seek(1 << 19)
            file.write(b"data")
        subprocess.run(["tar", "-S", f"--format={posix}", "-cf", path, "-C", path.parent, "a.png"], check=True)

    return write


REFUSED = {
    "cut at a header": (edited(lambda data: data[: header_of(data, 6)]), "plain tar"),
    "cut within a header": (edited(lambda data: data[: header_of(data, 6) + 100]), "plain tar"),
    "cut within data": (edited(lambda data: data[: header_of(data, 6) + 600]), "plain tar"),
    "cut before its end": (edited(lambda data: data[: header_of(data, 9) + 1536]), "its end is missing"),
    "zeroed header": (edited(zeroed_header), "no valid header"),
    "damaged header": (edited(damaged_header), "no valid header"),
    "header with a size below zero": (edited(negative_size), "plain tar"),
    "header of eight gigabytes": (edited(huge_header), "a header of"),
    "thousands of headers for one member": (edited(many_headers), "plain tar"),
    "two tars in one": (edited(lambda data: data + data), "more data"),
    "empty file": (lambda path: path.write_bytes(b""), "plain tar"),
    "not a tar": (lambda path: path.write_bytes(b"<!DOCTYPE html><title>404</title>" * 50), "plain tar"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(write_tar(path, FILES).read_bytes())), "gzip"),
    "xz": (lambda path: tarfile.open(path, "w:xz").close(), "compressed with xz"),
    "bzip2": (lambda path: tarfile.open(path, "w:bz2").close(), "compressed with bzip2"),
    "zstd": (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000)), "compressed with zstd"),
    "same member twice": (members([("a.png", b"1"), ("a.PNG", b"2")]), "a.PNG comes twice"),
    "same key apart": (members({"a.png": b"1", "b.png": b"2", "a.cls": b"3"}), "a.cls: the members of a are not"),
    "same key twice": (members([("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")]), "a.png: the members of a are not"),
    "absolute name": (members({"/a.png": b"1"}), "/a.png: the name leaves"),
    "name outside": (members({"b/../../a.png": b"1"}), "b/../../a.png: the name leaves"),
    "name with control characters": (members({"a\x1b[2J.png": b"1"}), r"'a\x1b[2J.png': the name has control"),
    "symbolic link": (special(tarfile.SYMTYPE), "b.png is a link"),
    "hard link": (special(tarfile.LNKTYPE), "b.png is a link"),
    "fifo": (special(tarfile.FIFOTYPE), "b.png is not a plain file"),
    "device": (special(tarfile.CHRTYPE), "b.png is not a plain file"),
    "sparse file of GNU": (sparse("gnu"), "a.png is not a plain file"),
    "sparse file of pax": (sparse("posix"), "a.png is not a plain file"),
    "large member": (members({"a.png": bytes(70_000)}), "a.png has 70000 bytes, more than the 65536"),
    "three hundred extensions": (members({f"a.{i}.png": b"" for i in range(300)}), "more than 256 extensions"),
    "nothing in it": (members({}), "no samples"),
    "no keys in it": (members({"README": b"1", ".hidden.png": b"2"}), "no samples"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_tar_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write, words = REFUSED[name]
    path = tmp_path / "bad.tar"
    write(path)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        write_index(tmp_path, max_member=65536)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / INDEX_NAME).exists()


@given(st.data())
def test_a_tar_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.tar"
    whole = write_tar(path, FILES).read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    path.write_bytes(whole[: data.draw(st.integers(0, end + 1023))])
    with pytest.raises(UserError, match="plain tar"):
        scan(str(path))


def test_all_refused_tars_are_reported_together(tmp_path: Path) -> None:
    for i in range(8):
        write_tar(tmp_path / f"{i}.tar", {"a.png": b"1"} if i == 3 else {"/a.png": b""})
    with pytest.raises(UserError) as caught:
        write_index(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/0.tar: /a.png: the name leaves")
    assert "6 more of 8 are refused" in message
    assert all(f"{tmp_path}/{i}.tar" in message for i in (1, 2, 4, 5, 6))
    assert f"{tmp_path}/3.tar" not in message


def test_long_names_are_read(tmp_path: Path) -> None:
    for i, tar_format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        write_tar(tmp_path / f"{i}.tar", {f"{i}" * 300 + ".png": b"1", "b.png": b"2"}, tar_format)
    write_index(tmp_path)
    shards = load(str(tmp_path))
    assert [shards.sample(i, 0).key for i in range(2)] == ["0" * 300, "1" * 300]


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth"])
def test_a_pickle_is_never_loaded(tmp_path: Path, extension: str) -> None:
    import pickle

    bomb = pickle.dumps(Bomb(tmp_path / "gone off"))
    write_tar(tmp_path / "x.tar", {f"a.{extension}": bomb, "a.png": png(random_pixels(0))})
    write_index(tmp_path)
    shards = load(str(tmp_path))
    assert Reader(shards).read(0, shards.sample(0, 0), extension) == bomb
    (note,) = notes(tmp_path)
    assert f"1 .{extension} member may hold pickles" in note
    assert not (tmp_path / "gone off").exists()
