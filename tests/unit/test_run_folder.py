"""The run directory: the names of checkpoints, and who holds the lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from diffpipe.files import open_locked
from diffpipe.run_folder import committed, is_run, lock_holder, step_name, step_of
from tests.support.run_folders import run_folder


def test_a_name_gives_its_step_and_names_sort_as_steps() -> None:
    steps = [0, 9, 10, 99_999_999]
    names = [step_name(step) for step in steps]
    assert names == sorted(names)
    assert [step_of(Path("runs") / name) for name in names] == steps
    assert step_of(Path(step_name(123_456_789))) == 123_456_789


def test_only_folders_named_after_a_step_are_committed_newest_first(tmp_path: Path) -> None:
    for name in (".tmp-step-00000009", "damaged-step-00000008", "step-2", "step-00000010", "step-x", "step-00000003"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000011").touch()
    assert [path.name for path in committed(tmp_path)] == ["step-00000010", "step-00000003", "step-2"]
    assert committed(tmp_path / "none") == []


def test_runs_and_checkpoints_are_told_from_other_folders(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    (checkpoint, *_) = committed(tmp_path / "run" / "checkpoints")
    assert is_run(tmp_path / "run")
    assert is_run(checkpoint)
    assert not is_run(checkpoint.parent)
    assert not is_run(tmp_path / "absent")


HOLDER = "import sys; from diffpipe.files import *; open_locked(Path(sys.argv[1])); print('held', flush=True); input()"


def test_the_holder_of_a_lock_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with (
        path.open() as file,
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert lock_holder(file.fileno()) == holder.pid
        assert open_locked(path) is None
        holder.communicate("\n")
        assert lock_holder(file.fileno()) is None
    descriptor = open_locked(path)
    assert descriptor is not None
    os.close(descriptor)
