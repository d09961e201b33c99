"""Scans by several processes: the same index, resumed after an interruption."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from diffpipe.data.index import parallel_scan
from diffpipe.data.index.shard_index import INDEX_NAME, ShardIndex
from diffpipe.data.index.shard_set import load
from diffpipe.data.index.write_index import write_index, write_remote_index
from diffpipe.errors import UserError
from tests.support.tars import write_shards, write_tar
from tests.support.web_server import serving


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are read, in order."""
    names: list[str] = []
    scan_file = parallel_scan.scan_file

    def counted(file, where: str, max_member: int):
        names.append(where.rpartition("/")[2])
        return scan_file(file, where, max_member)

    monkeypatch.setattr(parallel_scan, "scan_file", counted)
    return names


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_index_does_not_depend_on_the_number_of_processes(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, [3, 1, 5, 2])
    write_tar(tmp_path / "other.tar", {"a.txt": b"1"})
    write_index(tmp_path)
    alone = (tmp_path / INDEX_NAME).read_bytes()
    write_index(tmp_path, workers=workers)
    assert (tmp_path / INDEX_NAME).read_bytes() == alone
    assert not (tmp_path / ".index.parts").exists()


def test_scans_before_an_interruption_are_not_repeated(tmp_path: Path, scanned: list[str]) -> None:
    write_shards(tmp_path, [3, 1, 5])
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"bad\.tar"):
        write_index(tmp_path)
    assert sorted(scanned) == ["bad.tar", "shard-000.tar", "shard-001.tar", "shard-002.tar"]
    scanned.clear()
    write_tar(tmp_path / "bad.tar", {"z.png": b"1"})
    changed = tmp_path / "shard-001.tar"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    write_index(tmp_path)
    assert sorted(scanned) == ["bad.tar", "shard-001.tar"]
    assert load(str(tmp_path)).total == 10
    scanned.clear()
    write_index(tmp_path)
    assert len(scanned) == 4


def test_a_damaged_scan_is_repeated(tmp_path: Path, scanned: list[str]) -> None:
    write_shards(tmp_path, [3, 1])
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError):
        write_index(tmp_path)
    for part in (tmp_path / ".index.parts").iterdir():
        part.write_bytes(part.read_bytes()[:20])
    (tmp_path / "bad.tar").unlink()
    scanned.clear()
    write_index(tmp_path)
    assert len(scanned) == 2


def test_a_lower_max_member_applies_to_earlier_scans_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": bytes(100)})
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"bad\.tar"):
        write_index(tmp_path)
    with pytest.raises(UserError, match=r"0\.tar: a\.png has 100 bytes"):
        write_index(tmp_path, max_member=99)


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_shards(tmp_path, [3])
    scan_file = parallel_scan.scan_file

    def slow(*args):
        os.utime(path, ns=(0, 0))
        return scan_file(*args)

    monkeypatch.setattr(parallel_scan, "scan_file", slow)
    with pytest.raises(UserError, match="was changed while it was read"):
        write_index(tmp_path)


def test_two_commands_do_not_index_one_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, [1])
    (tmp_path / ".index.parts").mkdir()
    with (tmp_path / ".index.parts" / "lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        child = os.fork()  # a record lock is a process's own
        if child == 0:
            try:
                write_index(tmp_path)
            except UserError as error:
                os._exit(7 if "another diffpipe index is at work there" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    write_index(tmp_path)


def test_a_killed_worker_is_reported_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]
) -> None:
    write_shards(tmp_path, [1] * 6)
    scan_file = parallel_scan.scan_file

    def dies(file, where: str, max_member: int):
        if where.endswith("shard-005.tar"):
            while len(list((tmp_path / ".index.parts").glob("?" * 32))) < 5:  # until the others are scanned
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return scan_file(file, where, max_member)

    with monkeypatch.context() as patched:
        patched.setattr(parallel_scan, "scan_file", dies)
        with pytest.raises(UserError, match="lower --workers"):
            write_index(tmp_path, workers=2)
    assert not (tmp_path / INDEX_NAME).exists()
    write_index(tmp_path)
    assert scanned == ["shard-005.tar"]


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_workers_end_with_a_killed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c: bool) -> None:
    write_shards(tmp_path, [1] * 4)
    monkeypatch.setattr(parallel_scan, "scan_file", lambda *_: time.sleep(1000))
    command = os.fork()
    if command == 0:
        try:
            os.setsid()
            write_index(tmp_path, workers=3)
        finally:
            os._exit(1)
    try:
        children: list[Path] = []
        deadline = time.monotonic() + 60
        while len(children) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
            listed = Path(f"/proc/{command}/task/{command}/children").read_text().split()
            children = [Path(f"/proc/{pid}") for pid in listed]
        assert len(children) == 3
        time.sleep(0.2)
    finally:
        (os.killpg if ctrl_c else os.kill)(command, signal.SIGINT if ctrl_c else signal.SIGKILL)
        os.waitpid(command, 0)
    deadline = time.monotonic() + 60
    while any(child.exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(child.exists() for child in children)


def test_remote_shards_are_read_through_once_and_resumed_by_their_etag(tmp_path: Path, scanned: list[str]) -> None:
    there, out = tmp_path / "there", tmp_path / "here"
    write_shards(there, [3, 1, 5])
    write_index(there)
    scanned.clear()
    with serving(there) as web:
        web.drop = 3
        names = f"{web.url}/shard-00{{0,1,2,3}}.tar"
        with pytest.raises(UserError, match=rf"^{web.url}/shard-003\.tar: cannot be read"):
            write_remote_index(parallel_scan.remote_shards([names]), out)
        write_tar(there / "shard-003.tar", {"z.png": b"1"})
        write_shards(there, [3, 2])
        web.requests.clear()
        scanned.clear()
        write_remote_index(parallel_scan.remote_shards([names]), out)
        assert sorted(scanned) == ["shard-001.tar", "shard-003.tar"]
    assert [path.name for path in out.iterdir()] == [INDEX_NAME]
    write_index(there)
    local, remote = ShardIndex(str(there / INDEX_NAME)), ShardIndex(str(out / INDEX_NAME))
    assert (local.base, remote.base) == (None, web.url)
    assert remote.shards == local.shards
    assert [remote.sample(i) for i in range(11)] == [local.sample(i) for i in range(11)]


def test_a_remote_folder_is_listed(tmp_path: Path) -> None:
    write_shards(tmp_path / "there", [1, 2])
    (tmp_path / "there" / "index.html").write_text('<a href="shard-000.tar">0</a> <a href="shard-001.tar">1</a>')
    with serving(tmp_path / "there") as web:
        urls = parallel_scan.remote_shards([f"{web.url}/"])
        assert urls == [f"{web.url}/shard-000.tar", f"{web.url}/shard-001.tar"]
        write_remote_index(urls, tmp_path / "here", workers=2)
    assert len(ShardIndex(str(tmp_path / "here" / INDEX_NAME)).shards) == 2


def test_a_scan_is_reused_only_for_the_same_etag(tmp_path: Path, scanned: list[str]) -> None:
    write_shards(tmp_path / "a", [2, 1])
    write_shards(tmp_path / "b", [2, 1])

    def index(folder: str) -> int:
        scanned.clear()
        with pytest.raises(UserError, match=r"shard-002\.tar: cannot be read"):
            write_remote_index(
                parallel_scan.remote_shards([f"{web.url}/{folder}/shard-00{{0,1,2}}.tar"]), tmp_path / "out"
            )
        return len(scanned)

    with serving(tmp_path) as web:
        assert [index("a"), index("a"), index("b"), index("a")] == [2, 0, 2, 2]
        web.etags = False
        assert [index("a"), index("a")] == [2, 2]


@pytest.mark.parametrize("where", [".index.parts", ".index.parts/lock"])
def test_a_link_in_the_place_of_its_own_files_is_refused(tmp_path: Path, where: str) -> None:
    write_shards(tmp_path / "a", [1])
    victim = tmp_path / "victim"
    if where.endswith("lock"):
        victim.write_bytes(b"precious")
        (tmp_path / "a" / ".index.parts").mkdir()
    else:
        victim.mkdir()
    (tmp_path / "a" / where).symlink_to(victim)
    with pytest.raises(UserError, match="a symbolic link"):
        write_index(tmp_path / "a")
    assert victim.read_bytes() == b"precious" if victim.is_file() else list(victim.iterdir()) == []


def test_a_scan_that_was_handed_on_with_a_shard_is_not_believed(tmp_path: Path, scanned: list[str]) -> None:
    write_shards(tmp_path / "a", [1, 1])
    write_tar(tmp_path / "a" / "z.tar", {"x": b""})  # refused, so that the scans of the others stay
    with pytest.raises(UserError, match=r"z\.tar"):
        write_index(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the times of all files
    for folder, again in (("a", []), ("b", ["shard-000.tar", "shard-001.tar"])):
        scanned.clear()
        with pytest.raises(UserError, match=r"z\.tar"):
            write_index(tmp_path / folder)
        assert sorted(set(scanned) - {"z.tar"}) == again
