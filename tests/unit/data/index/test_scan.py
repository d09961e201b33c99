"""The scan of a tar: offsets and hashes against tarfile and hashlib, and damaged headers."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data.index import scan as module
from diffpipe.data.index.scan import parse_class, scan, scan_file
from diffpipe.errors import UserError
from tests.support.tars import write_tar

FILES = {f"a/{i:03d}.{e}": bytes([48 + i]) * n for i in range(5) for e, n in (("png", 500 + 400 * i), ("cls", 1))}


class Trickle:
    """A file that cannot seek and gives a few bytes at a time, as a connection does."""

    def __init__(self, data: bytes, step: int):
        self.file, self.step = io.BytesIO(data), step

    def read(self, size: int, /) -> bytes:
        return self.file.read(min(size, self.step))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_and_hashes_agree_with_other_libraries(tmp_path: Path, tar_format: int) -> None:
    long = FILES if tar_format == tarfile.USTAR_FORMAT else {**FILES, "\u00e9" * 120 + ".png": b"long name"}
    path = write_tar(tmp_path / "x.tar", long, tar_format)
    data = path.read_bytes()
    result = scan(str(path))
    assert (result.bytes, result.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert result.end == tar.offset
    columns = result.columns
    assert columns["member.offset"].tolist() == [info.offset_data for info in members]
    assert columns["member.size"].tolist() == [info.size for info in members]
    assert columns["member.crc32"].tolist() == [zlib.crc32(content) for content in long.values()]
    assert result.starts.tolist() == [info.offset for info in members if info.name.endswith("png")]
    names = [result.extensions[i] for i in columns["member.extension"]]
    assert names == [name.rpartition(".")[2] for name in long]


@given(st.integers(1, 2000))
def test_a_file_that_cannot_seek_scans_alike(tmp_path_factory: pytest.TempPathFactory, step: int) -> None:
    path = write_tar(tmp_path_factory.mktemp("trickle") / "x.tar", FILES, tarfile.PAX_FORMAT)
    whole, trickled = scan(str(path)), scan_file(Trickle(path.read_bytes(), step + 6), "there")
    assert trickled._replace(columns={}, starts=whole.starts) == whole._replace(columns={})
    assert np.array_equal(trickled.starts, whole.starts)
    for name, column in whole.columns.items():
        assert np.array_equal(trickled.columns[name], column)


@given(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.data())
def test_damaged_headers_give_a_user_error_or_a_scan(
    tmp_path_factory: pytest.TempPathFactory, tar_format: int, data: st.DataObject
) -> None:
    path = write_tar(tmp_path_factory.mktemp("flip") / "x.tar", {"\u00e9" * 120 + ".png": b"1", **FILES}, tar_format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with a checksum that fits, so that the damage reaches what comes behind it
        for at in range(0, 4096, 512):
            if content[at + 257 : at + 262] == b"ustar":
                content[at + 148 : at + 156] = b"%06o\0 " % (
                    sum(content[at : at + 148] + content[at + 156 : at + 512]) + 256
                )
    try:
        result = scan_file(io.BytesIO(content), "x.tar")
    except UserError:
        return
    assert result.bytes == len(content)
    ends = result.columns["member.offset"] + result.columns["member.size"]
    assert ends.max() <= result.end <= len(content) - 1024


def test_memory_does_not_grow_with_a_member_or_a_header(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.bin": bytes(64 << 20)})
    tracemalloc.start()
    try:
        scan(str(path))
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_keys_with_equal_hashes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash", lambda key: 7, raising=False)
    assert len(scan(str(write_tar(tmp_path / "x.tar", FILES))).starts) == 5
    repeated = [*FILES.items(), ("a/001.json", b"")]
    with pytest.raises(UserError, match=re.escape("a/001.json: the members of a/001 are not adjacent")):
        scan(str(write_tar(tmp_path / "y.tar", repeated)))


@pytest.mark.parametrize(
    ("data", "expected"), [(b" 7\n", 7), (b"-1", None), (b"1.0", None), (b"", None), (b"9" * 18, 10**18 - 1)]
)
def test_classes_are_plain_numbers(data: bytes, expected: int | None) -> None:
    assert parse_class(data) == expected


@pytest.mark.parametrize("data", [b"9" * 19, b"9" * 5000, b"1" + b" " * 600 + b"x"])
def test_a_class_that_is_no_number_of_64_bits_is_none(tmp_path: Path, data: bytes) -> None:
    assert parse_class(data) is None
    assert scan(str(write_tar(tmp_path / "x.tar", {"a.png": b"", "a.cls": data}))).classes is None
