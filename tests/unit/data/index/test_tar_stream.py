"""The headers of a tar that is read once: against tarfile, hashlib and the file's own length."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from diffpipe.data.index.tar_stream import TarStream, headers
from diffpipe.errors import UserError
from tests.support.tars import write_tar

MEMBERS = {"a.png": b"1" * 700, "long/" * 30 + "b.png": b"", "c.cls": b"3"}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_length_and_hash_are_those_of_other_libraries(tmp_path: Path, tar_format: int) -> None:
    data = write_tar(tmp_path / "a.tar", MEMBERS, tar_format).read_bytes()
    stream = TarStream(io.BytesIO(data), "a.tar")
    infos = [(info.name, info.size, info.offset_data) for info in headers(stream, "a.tar")]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert infos == [(info.name, info.size, info.offset_data) for info in tar.getmembers()]
    assert stream.drain() == len(data)
    assert stream.sha256.digest() == hashlib.sha256(data).digest()
    assert stream.last == len(data.rstrip(b"\0"))


class Slow(io.BytesIO):
    """A file that gives at most seven bytes at a time, as a socket may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(7)


@pytest.mark.parametrize("kind", [io.BytesIO, Slow])
def test_it_reads_forward_only(kind: type[io.BytesIO]) -> None:
    data = bytes(range(256)) * 10
    stream = TarStream(kind(data), "a.tar")
    stream.seek(300)
    assert b"".join(stream.views(50)) == data[300:350]
    assert (stream.tell(), stream.read(9000)) == (350, data[350:])
    with pytest.raises(tarfile.ReadError, match="points back"):
        stream.seek(10)


def test_a_compressed_tar_is_named_with_its_compression(tmp_path: Path) -> None:
    data = gzip.compress(write_tar(tmp_path / "a.tar", MEMBERS).read_bytes())
    with pytest.raises(UserError, match=r"^a\.tar\.gz: compressed with gzip.*decompress it first"):
        list(headers(TarStream(io.BytesIO(data), "a.tar.gz"), "a.tar.gz"))


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", MEMBERS, tarfile.GNU_FORMAT).read_bytes())
    data[3] ^= 1  # in the first name, which the header's checksum covers
    with pytest.raises(UserError, match=r"^a\.tar: not a whole, plain tar: "):
        list(headers(TarStream(io.BytesIO(bytes(data)), "a.tar"), "a.tar"))
