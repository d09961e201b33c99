"""Files: written whole or not at all, locked against other processes, and opened only where they are regular."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe import files
from diffpipe.files import (
    atomic_file,
    atomic_write,
    has_name,
    lock,
    open_locked,
    open_regular,
    open_writable,
    parse_json,
    private_folder,
    read_regular,
    release,
    sha256_of,
    sync,
    why_unwritable,
)
from tests.support.planted import plant

Owner = Literal["process", "file"]


def in_child(body: Callable[[], int]) -> int:
    """The exit status of a forked process that runs `body`; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = body()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@settings(max_examples=30, deadline=None)
@given(old=st.none() | st.binary(max_size=99), pieces=st.lists(st.binary(max_size=99)))
def test_a_written_file_has_the_new_bytes_and_leaves_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, old: bytes | None, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("whole") / "file"
    if old is not None:
        path.write_bytes(old)
    with atomic_file(path) as file:
        for piece in pieces:
            file.write(piece)
        assert (path.read_bytes() if path.exists() else None) == old
    assert path.read_bytes() == b"".join(pieces)
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf8_and_the_mode_is_0644(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a", "größer\n")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == "größer\n".encode()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fault != "write":
        monkeypatch.setattr({"fsync": "os.fsync", "replace": "pathlib.Path.replace"}[fault], full)

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            if fault == "write":
                full()

    with pytest.raises(OSError, match="No space left"):
        write()
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_before_the_rename_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write() -> int:
        setattr({"fsync": os, "replace": Path}[moment], moment, die)
        atomic_write(path, "new" * 99999)
        return 0

    assert in_child(write) == -signal.SIGKILL
    assert path.read_text() == "old"
    atomic_write(path, "newer")  # what the killed process left is in nobody's way
    assert path.read_text() == "newer"


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to("target")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


def test_files_and_folders_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    sync(tmp_path / "a")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "b")


@given(data=st.binary(max_size=9999))
@settings(max_examples=20, deadline=None)
def test_the_hash_is_that_of_hashlib(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(data)
    assert sha256_of(path) == hashlib.sha256(data).hexdigest()


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for path, follow_links in ((tmp_path / "file", False), (tmp_path / "file", True), (tmp_path / "link", True)):
        with os.fdopen(open_regular(path, follow_links=follow_links), "rb") as file:
            assert file.read() == b"abc"
            assert not os.get_inheritable(file.fileno())
        assert read_regular(path, follow_links=follow_links) == b"abc"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("link", "a symbolic link"), ("fifo", "a FIFO"), ("folder", "a directory"), ("zero", "a device"), ("socket", "")],
)
def test_anything_else_is_refused_at_once(tmp_path: Path, kind: str, message: str, follow_links: bool) -> None:
    path = tmp_path / kind
    if kind == "link":
        path.symlink_to("/dev/zero" if follow_links else __file__)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "zero":
        path = Path("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    before, began = os.listdir("/proc/self/fd"), time.monotonic()  # noqa: PTH208
    with pytest.raises(OSError) as raised:  # noqa: PT011
        open_regular(path, follow_links=follow_links)
    assert time.monotonic() - began < 60  # rather than never
    if not (kind == "link" and follow_links) and kind != "socket":
        assert message in str(raised.value.strerror)
        assert "not a regular file" in str(raised.value.strerror)
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor is left open"  # noqa: PTH208


def test_the_hash_of_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="a device"):
        sha256_of(Path("/dev/zero"))


def can_lock(path: Path, owner: Owner) -> bool:
    """Whether another process gets the lock."""

    def attempt() -> int:
        return int(open_locked(path, owner=owner) is not None)

    return in_child(attempt) == 1


@pytest.mark.parametrize("owner", ["process", "file"])
def test_a_lock_excludes_other_processes_until_it_is_released(tmp_path: Path, owner: Owner) -> None:
    path = tmp_path / "lock"
    file = open_locked(path, owner=owner)
    assert file is not None
    assert not can_lock(path, owner)
    release(file)
    assert can_lock(path, owner)


@pytest.mark.parametrize("owner", ["process", "file"])
def test_a_lock_ends_with_a_killed_process(tmp_path: Path, owner: Owner) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from diffpipe.files import open_locked; "
        "assert open_locked(Path(sys.argv[1]), owner=sys.argv[2]) is not None; "
        "print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path), owner], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert not can_lock(path, owner)
    holder.kill()
    waiting = open_locked(path, wait=True, owner=owner)
    assert waiting is not None
    release(waiting)
    holder.wait()
    holder.stdout.close()


@pytest.mark.parametrize(("owner", "kept"), [("process", False), ("file", True)])
def test_a_worker_that_outlives_the_holder_keeps_a_file_lock_alone(tmp_path: Path, owner: Owner, kept: bool) -> None:
    path = tmp_path / "lock"
    read, write = os.pipe()

    def hold_and_leave_a_worker() -> int:
        assert open_locked(path, owner=owner) is not None
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the test closes its end
            os._exit(0)
        return 0

    assert in_child(hold_and_leave_a_worker) == 0
    assert can_lock(path, owner) is not kept
    os.close(write)
    os.close(read)


def test_a_file_lock_excludes_its_own_process_and_release_ends_it_for_children(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = open_locked(path, owner="file")
    assert first is not None
    assert open_locked(path, owner="file") is None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    release(first)
    assert can_lock(path, "file"), "the child's copy of the file still holds the lock"
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)


def test_the_locked_file_has_the_name_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder removes the file on its way out; whoever opened it before locks the new one."""
    path = tmp_path / "lock"
    attempts = 0

    def removed_meanwhile(descriptor: int, **options: bool) -> bool:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(files, "lock", removed_meanwhile)
    file = open_locked(path)
    assert file is not None
    assert attempts == 2
    assert has_name(file, path)
    path.rename(tmp_path / "other")
    assert not has_name(file, path)
    release(file)


def test_a_file_system_without_locks_is_not_a_held_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with pytest.raises(OSError, match="No locks"):
        open_locked(tmp_path / "lock")


@pytest.mark.parametrize("kind", ["link", "dangling link", "device", "FIFO", "folder", "socket"])
def test_only_a_regular_file_is_written_to(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(kind, tmp_path / "x", victim)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        open_writable(tmp_path / "x")
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        open_locked(tmp_path / "x")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "created").exists()


def test_a_file_of_ones_own_has_one_name_and_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.link(victim, tmp_path / "x")
    with pytest.raises(OSError, match="a hard link to another file"):
        open_writable(tmp_path / "x", own=True)
    os.close(open_writable(tmp_path / "x"))
    assert victim.read_bytes() == b"precious"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for attempt in (open_regular, open_writable):
        with pytest.raises(OSError, match="a file of another user"):
            attempt(victim, own=True)
        os.close(attempt(victim))


def test_a_link_is_hashed_only_where_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert sha256_of(tmp_path / "link") == sha256_of(tmp_path / "x", follow_links=False)
    with pytest.raises(OSError, match="a symbolic link"):
        sha256_of(tmp_path / "link", follow_links=False)


def test_a_file_above_its_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, limit=5) == b"12345"
    os.truncate(path, 1 << 40)  # sparse
    with pytest.raises(OSError, match="1099511627776 bytes, more than the 5"):
        read_regular(path, limit=5)


def test_a_private_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    private_folder(folder)  # nobody else can write to it
    (tmp_path / "own link").symlink_to(folder)
    private_folder(tmp_path / "own link")
    for mode in (0o770, 0o702):
        folder.chmod(mode)
        with pytest.raises(OSError, match="other users can write to it; run: chmod 700"):
            private_folder(folder)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="not a folder"):
        private_folder(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OSError, match="belongs to another user"):
        private_folder(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' comes twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        ('{"a": [1, 2, ' + "[" * 200 + "]" * 200 + "]}", "nested too deeply"),  # parsed, but not copied
        ("9" * 5000, "^a number has 5000 digits, and 4000 are the most$"),
        ('{"a": {"\\ud800": 1}}', r"the key '\\ud800' is no text: it holds half of a surrogate pair"),
        (b'{"\xff": 1}', "not UTF-8 at byte 2"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_what_is_not_json_is_a_value_error_of_few_words(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300


def test_json_is_parsed_as_by_python() -> None:
    text = '{"a": [1, 2.5, null, true], "ä": {"a": "\\ud800"}, "\\ud83d\\ude00": 4}'
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    assert [parse_json(text) for text in ("null", "2", '"a"', "[]", "{}")] == [None, 2, "a", [], {}]


def test_a_folder_that_cannot_be_written_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "new" / "newer") is None
    assert not (tmp_path / "new").exists()
    for place in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its words are compared)
            place.mkdir(parents=True)
        assert why_unwritable(place) == caught.value.strerror
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert why_unwritable(tmp_path / "new") == os.strerror(errno.EACCES)
