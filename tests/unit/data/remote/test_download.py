"""The download of a remote file: what an earlier process left is completed where it is right, and else replaced."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data.remote.download import CachedFile, ChangedError, download
from tests.support.web_server import Web, serving

DATA = bytes(range(200)) * 5
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "0.tar").write_bytes(DATA)
    with serving(tmp_path / "web") as server:
        yield server


@pytest.mark.parametrize("present", [b"", DATA[:300], DATA, b"x" * 300, b"x" * 2000], ids=len)
def test_whatever_lies_there_the_file_is_whole_in_the_end(web: Web, tmp_path: Path, present: bytes) -> None:
    (tmp_path / "part").write_bytes(present)
    part = os.open(tmp_path / "part", os.O_RDWR)
    try:
        assert download(CachedFile(f"{web.url}/0.tar", len(DATA), DIGEST), part) == DIGEST
    finally:
        os.close(part)
    assert (tmp_path / "part").read_bytes() == DATA
    assert len(web.requests) == {b"": 1, DATA[:300]: 1, DATA: 0, b"x" * 300: 2, b"x" * 2000: 1}[present]


def test_another_file_than_the_indexed_one_is_refused(web: Web, tmp_path: Path) -> None:
    part = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(ChangedError, match="its sha256 is another; restore it there"):
            download(CachedFile(f"{web.url}/0.tar", len(DATA), "0" * 64), part)
    finally:
        os.close(part)
