"""Retention: which checkpoints are kept, pruned, swept and quarantined."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.read import newest_valid
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.distributed import Communicator
from tests.support.run_states import run_state

ALONE = Communicator()


def save(directory: Path, *steps: int, keep_last: int = 9, keep_every: int = 0) -> None:
    with AsyncCheckpointer(
        directory, CheckpointConfig(keep_last=keep_last, keep_every=keep_every), ALONE
    ) as checkpointer:
        for step in steps:
            checkpointer.save({"x": torch.tensor(step)}, run_state(step))


def lie(directory: Path) -> list[str]:
    return sorted(p.name.replace("step-000000", "") for p in directory.iterdir() if p.name != "latest")


def spoil(directory: Path, step: int) -> None:
    (directory / f"step-{step:08d}" / "state.json").write_text("{}")


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (2, 0, ["11", "12"]),
        (3, 0, ["10", "11", "12"]),
        (2, 4, ["04", "08", "11", "12"]),
        (4, 5, ["05", "09", "10", "11", "12"]),
        (2, 1, [f"{step:02d}" for step in range(1, 13)]),
    ],
)
def test_the_newest_and_the_multiples_are_kept(
    tmp_path: Path, keep_last: int, keep_every: int, kept: list[str]
) -> None:
    save(tmp_path, *range(1, 13), keep_last=keep_last, keep_every=keep_every)
    assert lie(tmp_path) == kept


def test_only_what_killed_jobs_have_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-step-00000003")
    (tmp_path / "step-00000001").rename(tmp_path / ".old-step-00000001")
    (tmp_path / ".latest").touch()
    (tmp_path / ".nfs0001").touch()
    (tmp_path / "step-abc").mkdir()
    newest, warnings = recover(tmp_path, ALONE)
    assert newest is not None
    assert (newest.step, warnings) == (2, [])
    assert lie(tmp_path) == [".nfs0001", "02", "step-abc"]


def test_a_missing_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert recover(tmp_path / "run", ALONE) == (None, [])


def test_each_damaged_checkpoint_is_quarantined_under_a_name_of_its_own(tmp_path: Path) -> None:
    for taken in ("damaged-step-00000003", "damaged-step-00000003-2"):
        (tmp_path / taken).mkdir()
    save(tmp_path, 1, 2, 3, 4)
    for step in (1, 3, 4):
        spoil(tmp_path, step)
    newest_valid(tmp_path, ALONE)  # changes nothing
    assert lie(tmp_path)[:4] == ["01", "02", "03", "04"]
    newest, warnings = recover(tmp_path, ALONE)
    assert newest is not None
    assert newest.step == 2
    # The one older than the newest valid one was not checked.
    assert lie(tmp_path) == ["01", "02", "damaged-03", "damaged-03-2", "damaged-03-3", "damaged-04"]
    assert [w.split(";")[-1] for w in warnings] == [
        " renamed to damaged-step-00000004",
        " renamed to damaged-step-00000003-3",
    ]
    save(tmp_path, 3, 4, keep_last=2)  # quarantined ones are neither counted nor removed
    assert lie(tmp_path) == ["03", "04", "damaged-03", "damaged-03-2", "damaged-03-3", "damaged-04"]


@pytest.mark.parametrize("aside", [False, True])
def test_where_none_is_valid_the_damaged_ones_are_not_renamed(tmp_path: Path, aside: bool) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        spoil(tmp_path, step)
        if aside:
            (tmp_path / f"step-{step:08d}").rename(tmp_path / f"damaged-step-{step:08d}")
    before = lie(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*step-00000002.*start from scratch"):
        recover(tmp_path, ALONE)
    assert lie(tmp_path) == before
