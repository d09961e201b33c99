"""The lock of a run directory: one job at a time, and its holder is named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.train import run_lock
from diffpipe.train.distributed import Communicator
from diffpipe.train.run_lock import locked

ALONE = Communicator()


def test_where_another_job_holds_the_lock_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with locked(tmp_path / "run", ALONE):
        # The lock excludes other processes alone, so in this one it is imitated.
        monkeypatch.setattr(run_lock, "lock", lambda descriptor: False)
        with pytest.raises(UserError) as caught, locked(tmp_path / "run", ALONE):
            pass
        assert str(caught.value).startswith(f"another job trains in {tmp_path / 'run'} ({holder}): wait for it")
        assert (tmp_path / "run" / ".lock").read_text() == f"{holder}\n"


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
