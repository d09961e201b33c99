"""The server of a run's page: for this machine alone, and for its own name alone."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffpipe.errors import UserError
from diffpipe.report import report_server as module
from diffpipe.report.report_server import LivePage, report_server
from tests.support.report_runs import log_line, write_config, write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    home = tmp_path / "run"
    home.mkdir()
    write_config(home)
    return home


@pytest.fixture
def server(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(module, "_SHARE", 1.0)
    with report_server(run) as started:
        thread = threading.Thread(target=started.serve_forever, args=[0.01])
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def get(server: ThreadingHTTPServer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_the_page_and_its_version_are_served_to_this_machine_alone(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page = get(server, "/")
    assert status == 200
    status, version = get(server, "/version")
    assert status == 200
    assert f'data-version="{version}"' in page
    assert "connect-src 'self'" in page
    assert get(server, "/", host="localhost:8000")[0] == 200  # through a tunnel
    assert get(server, "/", host="example.com")[0] == 403
    assert get(server, "/", host=f"example.com:{server.server_port}")[0] == 403
    assert get(server, "/../config.yaml")[0] == 404


def test_a_client_that_says_nothing_or_leaves_ends_its_thread_without_a_word(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module._Handler, "timeout", 0.1)
    address, before = ("127.0.0.1", server.server_port), threading.active_count()
    silent = socket.create_connection(address)
    for request in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTT", b"\x16\x03\x01" * 99, b"A" * 70000):
        with socket.create_connection(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
            client.sendall(request)
    end = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.05)
    assert threading.active_count() == before
    silent.close()
    assert get(server, "/version")[0] == 200
    assert capfd.readouterr().err == ""


def test_the_version_changes_with_the_run(run: Path, server: ThreadingHTTPServer) -> None:
    before = get(server, "/version")[1]
    assert get(server, "/version")[1] == before
    write_lines(run / "metrics.jsonl", [log_line(10)])
    after = get(server, "/version")[1]
    assert after != before
    assert "images seen" in get(server, "/")[1]
    shutil.rmtree(run)
    assert get(server, "/version")[0] == 503


def test_the_version_changes_where_a_job_is_killed(run: Path, server: ThreadingHTTPServer) -> None:
    """It changes no file."""
    code = (
        "import sys; from diffpipe.files import *; open_locked(Path(sys.argv[1])); print('held', flush=True); input()"
    )
    (run / ".lock").write_text("process 1 on node7\n")
    with subprocess.Popen(
        [sys.executable, "-c", code, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as job:
        assert job.stdout is not None
        job.stdout.readline()
        assert "running" in get(server, "/")[1]
        before = get(server, "/version")[1]
        job.kill()
        job.wait()
        assert get(server, "/version")[1] != before


def test_a_browser_that_leaves_is_no_news(server: ThreadingHTTPServer, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", b"GET /", b""):
        connection = socket.create_connection(("127.0.0.1", server.server_port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
        connection.sendall(words)
        connection.close()
    assert get(server, "/version")[0] == 200
    assert capfd.readouterr().err == ""


def test_what_cannot_be_read_just_now_is_503(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stale(*_: object) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(server, "live", SimpleNamespace(page=stale, version=stale))
    assert [get(server, path)[0] for path in ("/", "/version")] == [503, 503]
    assert capfd.readouterr().err == ""


def test_a_page_that_takes_long_is_not_made_again_at_once(run: Path) -> None:
    live = LivePage(run)
    before = live.version()
    write_lines(run / "metrics.jsonl", [log_line(10)])
    assert live.version() == before  # made within the last moments


def test_a_wrong_directory_and_a_taken_port_are_refused(run: Path, server: ThreadingHTTPServer) -> None:
    with pytest.raises(UserError, match="no such directory"):
        report_server(run / "absent")
    with pytest.raises(UserError, match=rf"port {server.server_port}: .*; give another --port"):
        report_server(run, server.server_port)
    with pytest.raises(UserError, match=r"port 99999: .*; give another --port"):
        report_server(run, 99999)
