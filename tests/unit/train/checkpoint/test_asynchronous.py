"""Saving beside training: the checkpoint is the state at the call, or there is none."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffpipe.errors import RankError, UserError
from diffpipe.run_folder import committed
from diffpipe.train.checkpoint import asynchronous
from diffpipe.train.checkpoint import write as module
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state

ALONE = Communicator()
SYNCHRONOUS = CheckpointConfig.model_validate({"async": False})


def tensors(step: int) -> dict[str, Tensor]:
    """Tensors of several dimensions (0-d too), dtypes and memory formats, and two that share their memory."""
    generator = torch.Generator().manual_seed(step)
    tied = torch.randn(6, 5, generator=generator)
    return {
        "weight": torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last),
        "count": torch.tensor(step),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5, generator=generator).bfloat16().requires_grad_(),
        "tied": tied,
        "transposed": tied.T,
    }


def contents(directory: Path, step: int) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (directory / f"step-{step:08d}").iterdir()}


def test_a_save_beside_training_has_the_bytes_of_one_that_training_waits_for(tmp_path: Path) -> None:
    for name, config in (("async", CheckpointConfig()), ("sync", SYNCHRONOUS)):
        with AsyncCheckpointer(tmp_path / name, config, ALONE) as checkpointer:
            for step in (1, 2):
                weights, state = tensors(step), run_state(step, bad_samples=["as it was"])
                checkpointer.save(weights, state)
                with torch.no_grad():
                    for tensor in weights.values():
                        tensor.zero_()  # as an optimizer's step changes them in place
                state.bad_samples.append("later")
    for step in (1, 2):
        assert contents(tmp_path / "async", step) == contents(tmp_path / "sync", step)
        assert b"later" not in contents(tmp_path / "async", step)["state.json"]


def held_back(monkeypatch: pytest.MonkeyPatch, at: str) -> tuple[threading.Event, threading.Event]:
    """Make saves wait at a function. The first event is set when one arrives; setting the second lets it continue."""
    arrived, passes = threading.Event(), threading.Event()
    function: Callable[..., Any] = getattr(module, at)

    def slow(*args: Any) -> Any:
        arrived.set()
        assert passes.wait(10)
        return function(*args)

    monkeypatch.setattr(module, at, slow)
    return arrived, passes


@pytest.mark.parametrize("at", ["_begin", "_write", "_commit"])
def test_the_next_save_waits_for_the_one_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    arrived, passes = held_back(monkeypatch, at)
    checkpointer = AsyncCheckpointer(tmp_path, CheckpointConfig(), ALONE)
    checkpointer.save(tensors(1), run_state(1))  # returns before the commit
    assert arrived.wait(10)
    assert not committed(tmp_path)
    second = threading.Thread(target=checkpointer.save, args=(tensors(2), run_state(2)))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    assert not checkpointer.failed
    passes.set()
    second.join(10)
    assert (tmp_path / "step-00000001").is_dir()
    checkpointer.wait()
    assert [p.name for p in committed(tmp_path)] == ["step-00000002", "step-00000001"]


def test_without_async_the_checkpoint_is_committed_on_return(tmp_path: Path) -> None:
    checkpointer = AsyncCheckpointer(tmp_path, SYNCHRONOUS, ALONE)
    checkpointer.save(tensors(1), run_state(1))
    assert [p.name for p in committed(tmp_path)] == ["step-00000001"]


def test_the_step_that_was_saved_last_is_not_saved_again(tmp_path: Path) -> None:
    checkpointer = AsyncCheckpointer(tmp_path, CheckpointConfig(), ALONE)
    inodes = []
    for _ in range(2):  # a save was due, and the job got a signal to stop
        checkpointer.save(tensors(1), run_state(1))
        checkpointer.wait()
        inodes.append(committed(tmp_path)[0].stat().st_ino)
    assert inodes[0] == inodes[1]


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("at", "complaint"),
    [
        ("save_file", r"could not be written: .*No space left on device"),
        ("sync", r"could not be written: .*No space left on device"),
        ("atomic_write", r"could not be committed: .*No space left on device"),
    ],
)
def test_a_failed_save_leaves_earlier_checkpoints_and_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, complaint: str
) -> None:
    checkpointer = AsyncCheckpointer(tmp_path, CheckpointConfig(), ALONE)
    checkpointer.save(tensors(1), run_state(1))
    checkpointer.wait()
    with monkeypatch.context() as patched:
        patched.setattr(module, at, full)
        checkpointer.save(tensors(2), run_state(2))
        with pytest.raises(UserError, match=complaint):
            checkpointer.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]
    checkpointer.wait()  # the error is raised once
    checkpointer.save(tensors(2), run_state(2))
    checkpointer.wait()
    assert committed(tmp_path)[0].name == "step-00000002"


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"could not be written: .*free some space"),
        AsyncCheckpointer(tmp_path / "file", SYNCHRONOUS, ALONE) as checkpointer,
    ):
        checkpointer.save(tensors(1), run_state(1))


@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), KeyError("a bug")])
def test_an_error_of_the_thread_is_visible_at_once_and_raised_by_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_begin", fail)
    checkpointer = AsyncCheckpointer(tmp_path, CheckpointConfig(), ALONE)
    checkpointer.save(tensors(1), run_state(1))
    checkpointer._thread.join()  # pyright: ignore[reportOptionalMemberAccess]
    assert checkpointer.failed
    with pytest.raises(type(error)) as raised:
        checkpointer.save(tensors(2), run_state(2))
    assert raised.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "waits"), [(UserError("all"), True), (RankError("one"), False), (RuntimeError(), False)]
)
def test_after_an_error_the_save_is_awaited_only_where_all_ranks_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, waits: bool
) -> None:
    arrived, passes = held_back(monkeypatch, "_commit")
    checkpointer = AsyncCheckpointer(tmp_path, CheckpointConfig(), ALONE)

    def train() -> None:
        with checkpointer:
            checkpointer.save(tensors(1), run_state(1))
            assert arrived.wait(10)
            if waits:
                threading.Timer(0.05, passes.set).start()
            raise error

    with pytest.raises(type(error)):
        train()
    assert bool(committed(tmp_path)) == waits
    passes.set()
    checkpointer.wait()


def test_buffers_are_kept_from_save_to_save(tmp_path: Path) -> None:
    checkpointer = AsyncCheckpointer(tmp_path, SYNCHRONOUS, ALONE)
    places = []
    for step in (1, 2):
        checkpointer.save(tensors(step), run_state(step))
        places.append({name: buffer.data_ptr() for name, buffer in checkpointer._buffers.items()})
    assert places[0] == places[1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
@pytest.mark.parametrize("config", [CheckpointConfig(), SYNCHRONOUS])
def test_the_thread_has_low_priority_unless_training_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: CheckpointConfig
) -> None:
    priorities = []

    def commit(*_: object) -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    monkeypatch.setattr(module, "_commit", commit)
    checkpointer = AsyncCheckpointer(tmp_path, config, ALONE)
    checkpointer.save(tensors(1), run_state(1))
    deadline = time.monotonic() + 60
    while not priorities:  # the wait would raise the priority
        assert time.monotonic() < deadline
        time.sleep(0.01)
    checkpointer.wait()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    (priority,) = priorities
    assert priority > own if config.asynchronous else priority == own


def test_nobody_waits_for_the_removal_of_old_checkpoints_but_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, passes = threading.Event(), threading.Event()
    prune = asynchronous.prune

    def slow(directory: Path, config: CheckpointConfig) -> None:
        arrived.set()
        assert passes.wait(60)
        prune(directory, config)

    monkeypatch.setattr(asynchronous, "prune", slow)
    with AsyncCheckpointer(tmp_path, SYNCHRONOUS, ALONE) as checkpointer:
        checkpointer.save(tensors(1), run_state(1))  # returns while the thread still removes
        assert arrived.wait(60)
        assert [p.name for p in committed(tmp_path)] == ["step-00000001"]
        second = threading.Thread(target=checkpointer.save, args=(tensors(2), run_state(2)))
        second.start()
        second.join(0.05)
        assert second.is_alive(), "two threads would change the directory"
        passes.set()
        second.join(60)
    assert [p.name for p in committed(tmp_path)] == ["step-00000002", "step-00000001"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(directory: Path, config: CheckpointConfig) -> None:
        raise OSError(5, "Input/output error", str(directory / "step-00000001"))

    monkeypatch.setattr(asynchronous, "prune", refused)
    warnings: list[str] = []
    with AsyncCheckpointer(tmp_path, SYNCHRONOUS, ALONE, warnings.append) as checkpointer:
        for step in (1, 2):
            checkpointer.save(tensors(step), run_state(step))
    assert [p.name for p in committed(tmp_path)] == ["step-00000002", "step-00000001"]
    path = tmp_path / "step-00000001"
    assert warnings == [f"{path}: Input/output error: an old checkpoint cannot be removed; look at the disk"] * 2


def test_ranks_wait_for_a_save_an_hour_whatever_they_wait_for_a_step() -> None:
    assert timedelta(hours=1) == asynchronous.SAVE_TIMEOUT
