"""The lock of a run directory: one job at a time, and its holder is named."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.train import run_lock
from diffpipe.train.distributed import Communicator
from diffpipe.train.run_lock import lock_refusal, locked

ALONE = Communicator()


def test_where_another_job_holds_the_lock_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with locked(tmp_path / "run", ALONE):
        # The lock of the file excludes other processes alone, so in this one it is imitated.
        monkeypatch.setattr(run_lock, "_held_here", set())
        monkeypatch.setattr(run_lock, "lock", lambda descriptor: False)
        monkeypatch.setattr(run_lock, "_held_on_this_machine", lambda file: True)
        with pytest.raises(UserError) as caught, locked(tmp_path / "run", ALONE):
            pass
        assert str(caught.value).startswith(f"another job trains in {tmp_path / 'run'} ({holder}): wait for it")
        assert (tmp_path / "run" / ".lock").read_text() == f"{holder}\n"


def test_another_training_of_this_process_is_refused_in_the_same_words(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with locked(tmp_path / "run", ALONE):
        for place in ("run", "link"):
            with pytest.raises(UserError) as caught, locked(tmp_path / place, ALONE):
                pass
            assert str(caught.value).startswith(f"another job trains in {tmp_path / place} ({holder}): wait for it")
        # The refused one has not closed the file, which would have ended the lock.
        code = "import sys; from diffpipe.files import lock; f = open(sys.argv[1], 'r+b'); sys.exit(lock(f.fileno()))"
        assert subprocess.run([sys.executable, "-c", code, tmp_path / "run" / ".lock"], check=False).returncode == 0
        with locked(tmp_path / "other", ALONE), locked(tmp_path / "run", ALONE, use_lock=False):
            pass
    with locked(tmp_path / "run", ALONE):
        pass


def test_an_older_holders_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on a machine with a very long name that is longer than this one's\n" * 9)
    with locked(tmp_path, ALONE):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, ALONE):
        raise KeyError
    with locked(tmp_path, ALONE):
        pass


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to the run directory .*give another run\.dir"):
        locked(tmp_path / "file" / "run", ALONE).__enter__()

    def no_locks(descriptor: int) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_lock, "lock", no_locks)
    with pytest.raises(UserError, match=r"cannot lock .*\.lock \(Function not implemented\)"):
        locked(tmp_path, ALONE).__enter__()


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock until it gets a line."""
    program = (
        f"import fcntl; f = open({str(folder / '.lock')!r}, 'a+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(1); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-uc", program], **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.communicate("\n")


def test_a_live_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path), pytest.raises(UserError, match="another job trains in"):
        locked(tmp_path, ALONE, pytest.fail).__enter__()


def test_a_lock_of_another_machine_is_waited_for_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server keeps the lock of a node that has died for a minute or two."""
    (tmp_path / ".lock").write_text("process 7 on node-3\n")
    monkeypatch.setattr(run_lock, "_held_on_this_machine", lambda file: False)
    monkeypatch.setattr(run_lock, "_POLL", 0.01)
    messages: list[str] = []
    with held_elsewhere(tmp_path) as holder:

        def end_holder(message: str) -> None:
            messages.append(message)
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()

        with locked(tmp_path, ALONE, end_holder):
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    (message,) = messages
    assert message.startswith(f"{tmp_path / '.lock'} is locked by another machine (process 7 on node-3)")
    assert message.endswith("waiting up to 120 seconds")


def test_a_lock_that_stays_is_refused_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_held_on_this_machine", lambda file: False)
    monkeypatch.setattr(run_lock, "_POLL", 0.01)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.05)
    with held_elsewhere(tmp_path), pytest.raises(UserError, match=r"on another machine, as it seems.*remove .*\.lock"):
        locked(tmp_path, ALONE, lambda message: None).__enter__()


def test_the_others_do_not_wait_longer_than_a_collective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_held_on_this_machine", lambda file: False)
    monkeypatch.setattr(run_lock, "_POLL", 0.01)
    messages: list[str] = []
    with held_elsewhere(tmp_path), pytest.raises(UserError):
        locked(tmp_path, Communicator(timeout=timedelta(seconds=2)), messages.append).__enter__()
    assert messages[0].endswith("waiting up to 1 seconds")


def test_a_file_system_without_locks_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock, "lock", no_locks)
    with pytest.raises(UserError, match=r"No locks available.*run\.lock=false"):
        locked(tmp_path, ALONE).__enter__()
    with locked(tmp_path, ALONE, use_lock=False):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_lock_file_of_a_stranger_is_not_followed(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / ".lock") if kind == "fifo" else (run / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot write to the run directory"):
        locked(run, ALONE).__enter__()
    assert victim.read_text() == "untouched"


def refused_in(run: Path, *written: str) -> None:
    """A job that writes files in the run directory and is refused then."""

    def job() -> None:
        with locked(run, ALONE):
            (run / "checkpoints").mkdir(exist_ok=True)
            for name in written:
                (run / name).touch()
            raise UserError

    with pytest.raises(UserError):
        job()


def test_a_job_that_is_refused_removes_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    refused_in(run)
    assert list(tmp_path.iterdir()) == []
    refused_in(run, "config.yaml")
    refused_in(run)
    assert {path.name for path in run.iterdir()} == {".lock", "checkpoints", "config.yaml"}


def test_a_lock_whose_holder_removed_it_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def removed_while_waiting(descriptor: int) -> bool:
        if not attempts:
            (tmp_path / ".lock").unlink()
        attempts.append(descriptor)
        return True

    monkeypatch.setattr(run_lock, "lock", removed_while_waiting)
    with locked(tmp_path, ALONE):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    assert len(attempts) == 2


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_lock.socket, "gethostname", full)
    with pytest.raises(UserError, match=r"cannot write .*\.lock \(No space left on device\): free some space"):
        locked(tmp_path, ALONE).__enter__()


HOLD = """
import sys, time
from pathlib import Path
from diffpipe.train.distributed import Communicator
from diffpipe.train.run_lock import locked
with locked(Path(sys.argv[1]), Communicator()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
def test_a_job_that_would_be_refused_the_lock_learns_it_before_it_starts_and_nothing_is_written(tmp_path: Path) -> None:
    home = tmp_path / "run"
    assert lock_refusal(home) is None
    assert not home.exists()
    with subprocess.Popen([sys.executable, "-c", HOLD, home], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refusal = lock_refusal(home)
        with pytest.raises(UserError) as caught, locked(home, ALONE):
            pass
        assert refusal == str(caught.value)
        assert f"another job trains in {home} (process {holder.pid} on" in str(caught.value)
        holder.kill()
    assert (home / ".lock").read_text().startswith("process")
    assert lock_refusal(home) is None


def test_a_directory_that_would_be_refused_is_named_in_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to("elsewhere")
    for home in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError) as caught:
            locked(home, ALONE).__enter__()
        assert lock_refusal(home) == str(caught.value)
    with locked(tmp_path / "held", ALONE):
        assert (lock_refusal(tmp_path / "held") or "").startswith(f"another job trains in {tmp_path / 'held'} (process")
