"""A download: whole and checked, or an error and no file."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.metrics.download import download

CONTENT = b"weights " * 40_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_download_writes_the_whole_file_and_nothing_else(server, tmp_path: Path) -> None:
    _, serve, _ = server
    target = tmp_path / "cache" / "file.pt"
    download(serve("/file", CONTENT), target, SHA256)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/truncated", SHA256, r"broke off after 160000 of 320000 bytes|IncompleteRead"),
        ("/file", "0" * 64, f"sha256 is {SHA256}, not 0000"),
        ("/missing", SHA256, "404"),
    ],
)
def test_a_bad_download_leaves_nothing(server, tmp_path: Path, path: str, sha256: str, message: str) -> None:
    address, serve, _ = server
    serve("/file", CONTENT)
    serve("/truncated", CONTENT)
    with pytest.raises(UserError, match=message):
        download(address + path, tmp_path / "file.pt", sha256)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_the_users_error(server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot download it"):
        download("http://127.0.0.1:9/file", tmp_path / "file.pt", SHA256)


def test_concurrent_downloads_of_one_file_all_succeed(server, tmp_path: Path) -> None:
    _, serve, _ = server
    url, target = serve("/file", CONTENT), tmp_path / "file.pt"
    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(download, url, target, SHA256) for _ in range(6)]:
            future.result()
    assert target.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [target]
