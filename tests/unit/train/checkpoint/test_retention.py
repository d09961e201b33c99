"""What is kept, removed, swept and quarantined among a run's checkpoints."""

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
def test_the_newest_stay_and_multiples_stay_for_good(
    tmp_path: Path, keep_last: int, keep_every: int, kept: list[str]
) -> None:
    save(tmp_path, *range(1, 13), keep_last=keep_last, keep_every=keep_every)
    assert lie(tmp_path) == kept


def test_fewer_than_two_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointConfig(keep_last=1)


def test_what_killed_jobs_left_goes_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".tmp-step-00000003")
    (tmp_path / "step-00000001").rename(tmp_path / ".old-step-00000001")
    (tmp_path / ".latest").touch()
    (tmp_path / ".nfs0001").touch()
    (tmp_path / "step-abc").mkdir()
    found, warnings = recover(tmp_path, ALONE)
    assert found is not None
    assert (found.step, warnings) == (2, [])
    assert lie(tmp_path) == [".nfs0001", "02", "step-abc"]


def test_a_directory_that_is_not_there_yet_has_nothing(tmp_path: Path) -> None:
    assert recover(tmp_path / "run", ALONE) == (None, [])


def test_the_damaged_are_put_aside_each_under_a_name_of_its_own(tmp_path: Path) -> None:
    for taken in ("damaged-step-00000003", "damaged-step-00000003-2"):
        (tmp_path / taken).mkdir()
    save(tmp_path, 1, 2, 3, 4)
    for step in (1, 3, 4):
        spoil(tmp_path, step)
    newest_valid(tmp_path, ALONE)  # only looks
    assert lie(tmp_path)[:4] == ["01", "02", "03", "04"]
    found, warnings = recover(tmp_path, ALONE)
    assert found is not None
    assert found.step == 2
    # The one older than what the run goes on from was not looked at.
    assert lie(tmp_path) == ["01", "02", "damaged-03", "damaged-03-2", "damaged-03-3", "damaged-04"]
    assert [w.split(";")[-1] for w in warnings] == [
        " renamed to damaged-step-00000004",
        " renamed to damaged-step-00000003-3",
    ]
    save(tmp_path, 3, 4, keep_last=2)  # they are neither counted nor removed
    assert lie(tmp_path) == ["03", "04", "damaged-03", "damaged-03-2", "damaged-03-3", "damaged-04"]


@pytest.mark.parametrize("aside", [False, True])
def test_where_nothing_is_valid_the_damaged_are_evidence_and_stay_where_they_are(tmp_path: Path, aside: bool) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        spoil(tmp_path, step)
        if aside:
            (tmp_path / f"step-{step:08d}").rename(tmp_path / f"damaged-step-{step:08d}")
    before = lie(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole .*step-00000002.*start from scratch"):
        recover(tmp_path, ALONE)
    assert lie(tmp_path) == before
