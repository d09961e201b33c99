"""Remote files: read from any byte, resumed after errors, without secrets in messages."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data.remote import rate, storage
from diffpipe.data.remote.storage import RemoteFile
from diffpipe.errors import UserError
from tests.support.web_server import Web, serving

DATA = os.urandom(3_000_000)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.02))
    (tmp_path / "a b.tar").write_bytes(DATA)
    with serving(tmp_path) as server:
        yield server


def message(place: str) -> str:
    with pytest.raises(UserError) as caught:
        RemoteFile(place)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # a library's own error has the whole URL in it
    return str(caught.value)


def test_a_file_is_read_from_any_byte_on(web: Web) -> None:
    with RemoteFile(f"{web.url}/a b.tar") as file:
        assert file.size == len(DATA)
        assert file.etag
        assert io.BufferedReader(file, 1 << 16).read() == DATA
    with RemoteFile(f"{web.url}/a b.tar", start=200_000) as file:
        assert file.size == len(DATA)
        assert file.read(10) == DATA[200_000:200_010]
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:]
        assert file.read() == b""
    assert [request.start for request in web.requests if request.start] == [200_000, len(DATA) - 5]


def test_a_server_without_ranges_and_etags_serves_too(web: Web) -> None:
    web.ranges = web.etags = False
    web.drop = 2
    for start in (0, 1000):
        with RemoteFile(f"{web.url}/a b.tar", start) as file:
            assert (file.size, file.etag) == (len(DATA), "")
            assert file.readall() == DATA[start:]


def test_a_broken_connection_is_resumed_where_it_broke(web: Web) -> None:
    web.drop = 2
    for _ in range(4):
        with RemoteFile(f"{web.url}/a b.tar") as file:
            assert file.readall() == DATA
    starts = [request.start for request in web.requests]
    assert starts.count(0) == 4
    assert len(starts) > 4
    # Only what a broken connection still held is sent again: at most what aiohttp keeps ready.
    assert sum(request.sent for request in web.requests) <= 4 * len(DATA) + (len(starts) - 4 << 20)


def test_a_failing_server_is_tried_again(web: Web) -> None:
    web.failing = [503, 429]
    with RemoteFile(f"{web.url}/a b.tar") as file:
        assert file.readall() == DATA
    assert [request.status for request in web.requests] == [503, 429, 200]


def test_a_failed_read_says_why_and_what_to_do(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    place = f"{web.url}/%s?token=${{TOKEN}}"
    assert message(place % "none.tar") == (
        f"{web.url}/none.tar: cannot be read (there is no such file); check the address"
    )
    assert [request.query for request in web.requests] == ["token=hunter2"]
    web.failing = [403]
    assert "access is denied" in (refusal := message(place % "a b.tar"))
    assert "~/.netrc" in refusal
    web.failing = [500] * 3
    assert "500 Internal Server Error), tried 3 times" in message(place % "a b.tar")
    assert len(web.requests) == 5
    gone = message("http://127.0.0.1:9/x.tar")
    assert gone.startswith("http://127.0.0.1:9/x.tar: cannot be read (")
    assert "tried 3 times" in gone
    assert "ftp://: this scheme" in message("ftp://host/x.tar")
    assert "NONE is not set" in message("http://host/x.tar?a=${NONE}")


def test_a_server_that_does_not_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.01,))
    monkeypatch.setattr(storage, "TIMEOUTS", {"sock_connect": 0.1, "sock_read": 0.1})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = message(f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar")
    assert "cannot be read (no answer in time), tried 2 times" in error


def test_a_file_that_changes_while_it_is_read_is_refused(web: Web, tmp_path: Path) -> None:
    with RemoteFile(f"{web.url}/a b.tar") as file:
        file.read(10)
        (tmp_path / "a b.tar").write_bytes(DATA[::-1])
        file.seek(20)
        with pytest.raises(UserError, match="changed while it was read"):
            file.read(10)


def test_passwords_come_from_the_environment_or_netrc(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "p@ss/w")
    place = f"http://me:${{PASSWORD}}@127.0.0.1:{web.server_port}/a b.tar"
    with RemoteFile(place) as file:
        assert file.name == f"{web.url}/a b.tar"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password p@ss/w\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with RemoteFile(f"{web.url}/a b.tar"):
        pass
    with RemoteFile(f"{web.url}/a b.tar", 1) as file:
        assert file.read(1)
    assert {request.authorization for request in web.requests} == {"Basic bWU6cEBzcy93"}


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/x.tar",
        "https://secret@host/x.tar",
        "https://me:sec/secret@host/x.tar",
        "https://host/x.tar?token=secret",
        "https://host/x.tar?token=${A}&b=secret",
        "https://host/x.tar?${A}#secret",
        "s3://key:secret@bucket/x.tar",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    refusal = message(url)
    assert "secret" not in refusal
    assert "${NAME}" in refusal or "%2F" in refusal


def test_a_server_that_sends_too_little_is_an_error_in_the_end(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "_WINDOW", 0.05)
    web.rate = 100_000.0
    with RemoteFile(f"{web.url}/a b.tar", least_rate=1e12) as file, pytest.raises(UserError) as caught:
        file.readall()
    assert "bytes per second, fewer than 1000000000000; try again later, or set data.least_rate" in str(caught.value)
    assert len(web.requests) == 3
    with RemoteFile(f"{web.url}/a b.tar", start=len(DATA) - 50_000, least_rate=1.0) as file:
        assert file.readall() == DATA[-50_000:]


def test_a_busy_server_is_left_alone_as_long_as_it_asks_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    web.failing, web.retry_after = [429, 503], "7"
    with RemoteFile(f"{web.url}/a b.tar") as file:
        assert file.size == len(DATA)
    assert [wait for wait in waits if wait >= 1] == [7, 7]
    web.failing, web.retry_after = [503], "86400"
    assert message(f"{web.url}/a b.tar") == (
        f"{web.url}/a b.tar: cannot be read (503 Service Unavailable), and the server asks to wait 86400 seconds; run "
        "the same command again then"
    )


@pytest.mark.parametrize("length", ["9" * 5000, "\N{SUPERSCRIPT TWO}", "-1", "*", ""])
def test_a_length_that_is_no_number_is_not_known(length: str) -> None:
    assert storage._LENGTH.fullmatch(length) is None
