"""A file whose sha256 was recorded is read through again only where it has changed, and then not believed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data.remote import verified
from diffpipe.data.remote.verified import has_sha256, is_unchanged, record
from tests.support.planted import without_attributes

DATA = b"some bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["with attributes", "without attributes"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An open file."""
    if request.param == "without attributes":
        without_attributes(monkeypatch)
    (tmp_path / "x").write_bytes(DATA)
    descriptor = os.open(tmp_path / "x", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_a_file_is_read_once(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    digest = verified._digest
    monkeypatch.setattr(verified, "_digest", lambda descriptor: reads.append(0) or digest(descriptor))
    assert [has_sha256(file, SHA256) for _ in range(3)] == [True] * 3
    assert len(reads) == 1
    os.utime(file, ns=(0, os.fstat(file).st_mtime_ns))  # as the cache notes a use
    assert has_sha256(file, SHA256)
    assert len(reads) == 1
    assert not has_sha256(file, "0" * 64)


def test_a_changed_file_is_read_again(file: int) -> None:
    record(file, SHA256)
    os.pwrite(file, b"S", 0)
    os.utime(file, ns=(0, 0))
    assert not has_sha256(file, SHA256)


def test_a_file_without_a_record_is_not_unchanged(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    file = os.open(tmp_path / "x", os.O_RDWR)
    assert not is_unchanged(file)
    record(file, SHA256)
    assert is_unchanged(file)
    os.setxattr(file, "user.diffpipe.sha256", b"\xff no record")
    assert not is_unchanged(file)
    os.close(file)


def test_without_attributes_nothing_says_that_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_attributes(monkeypatch)
    (tmp_path / "x").write_bytes(DATA)
    file = os.open(tmp_path / "x", os.O_RDWR)
    assert is_unchanged(file)
    os.close(file)
