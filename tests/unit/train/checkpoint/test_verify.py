"""Damaged is what has other bytes than its manifest: what cannot be read just now is refused, and stays as it is."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.run_folder import committed
from diffpipe.train.checkpoint import verify
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.format import describe
from diffpipe.train.checkpoint.read import newest_valid, open_checkpoint
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.checkpoint.verify import damage
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state
from tests.support.thread_ranks import ThreadCommunicator

ALONE = Communicator()
SHARD = "rank-00000.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints, and no waiting between attempts."""
    monkeypatch.setattr(verify, "WAITS", (0, 0, 0))
    with AsyncCheckpointer(tmp_path / "checkpoints", CheckpointConfig(), ALONE) as checkpointer:
        for step in (1, 2):
            checkpointer.save({"x": torch.arange(9.0)}, run_state(step))
    return tmp_path / "checkpoints"


def failing(number: int, times: int, function: Callable[..., object], name: str = "") -> Callable[..., object]:
    """The function, which raises that OSError in its first calls for paths with that name."""
    left = times

    def call(path: Path, *args: object, **options: object) -> object:
        nonlocal left
        if left and name in str(path):
            left -= 1
            raise OSError(number, "the disk says so", str(path))
        return function(path, *args, **options)

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


PLACES = [("read_regular", "manifest.json"), ("describe", SHARD), ("committed", "checkpoints")]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize(("function", "name"), PLACES)
def test_what_fails_once_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str, name: str
) -> None:
    # The hashing of a file that fails is repeated by rank 0: it fails once there, and once in its share.
    monkeypatch.setattr(verify, function, failing(number, 2, getattr(verify, function), name))
    newest, warnings = recover(folder, ALONE)
    assert newest is not None
    assert (newest.step, warnings) == (2, [])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize(("function", "name"), PLACES)
def test_what_cannot_be_read_is_refused_and_nothing_is_renamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str, name: str
) -> None:
    before = names(folder)
    monkeypatch.setattr(verify, function, failing(number, 99, getattr(verify, function), name))
    with pytest.raises(UserError, match=r"cannot be read just now \(the disk says so\).*nothing was changed"):
        recover(folder, ALONE)
    assert names(folder) == before


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(PermissionError):
        committed(folder)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", SHARD])
def test_a_symbolic_link_in_a_checkpoint_is_refused_also_where_the_manifest_vouches_for_it(
    folder: Path, tmp_path: Path, name: str
) -> None:
    path = folder / "step-00000002" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    if name != "manifest.json":
        manifest = path.with_name("manifest.json")
        tree = json.loads(manifest.read_text())
        tree["files"][name]["size"] = path.lstat().st_size
        manifest.write_text(json.dumps(tree))
    before = names(folder)
    with pytest.raises(UserError, match=rf"{name}: a symbolic link, not a regular file"):
        recover(folder, ALONE)
    with pytest.raises(UserError, match="a symbolic link"):
        open_checkpoint(folder / "step-00000002", ALONE)
    assert names(folder) == before


@pytest.mark.parametrize("name", ["../step-00000001/state.json", "/etc/passwd", "sub/file"])
def test_a_manifest_that_names_a_file_outside_is_not_followed(folder: Path, name: str) -> None:
    manifest = folder / "step-00000002" / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["files"][name] = describe(folder / "step-00000001" / "state.json").model_dump()
    manifest.write_text(json.dumps(tree))
    assert damage(manifest.parent, ALONE) == f"{name} is missing"


def test_a_manifest_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / "step-00000002" / "manifest.json").open("r+b") as file:
        file.truncate(1 << 33)
    complaint = damage(folder / "step-00000002", ALONE)
    assert complaint is not None
    assert "more than the 67108864 that such a file may have" in complaint


def on_two_ranks(function: Callable[[Communicator], object]) -> list[object]:
    values, barrier = [None] * 2, threading.Barrier(2)
    comms = [ThreadCommunicator(rank, 2, values=values, threads=barrier) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, comms))


def test_rank_zero_alone_decides_what_is_there(folder: Path, tmp_path: Path) -> None:
    """Another rank of a network file system sees no checkpoint, and later one with other bytes."""
    stale = tmp_path / "stale"
    stale.mkdir()

    def newest(comm: Communicator) -> object:
        newest, damaged = newest_valid(folder if comm.main else stale, comm)
        return newest and newest.step, damaged

    assert on_two_ranks(newest) == [(2, []), (2, [])]
    shutil.copytree(folder / "step-00000002", stale / "step-00000002")
    for file in (stale / "step-00000002").iterdir():
        file.write_text("old")
    paths = {True: folder / "step-00000002", False: stale / "step-00000002"}
    assert on_two_ranks(lambda comm: damage(paths[comm.main], comm)) == [None, None]


def test_damage_that_rank_zero_sees_is_an_error_on_all(folder: Path) -> None:
    path = folder / "step-00000002"
    (path / "state.json").write_bytes((path / "state.json").read_bytes()[::-1])
    complaint = "state.json has been altered since it was saved (sha256 differs)"
    assert on_two_ranks(lambda comm: damage(path, comm)) == [complaint, complaint]
