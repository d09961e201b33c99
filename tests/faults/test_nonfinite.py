"""A non-finite loss or gradient on one rank: all ranks skip the same update, and the samples are named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.faults.fault_injection import MODULE, exit_statuses
from tests.support.checkpoint_tensors import consolidated
from tests.support.commands import metrics, seen
from tests.support.training_jobs import checkpoint_steps, train_fails, train_to_end

BAD = 3  # the step, from 0
# Adam's first steps are as long for a gradient of rounding errors as for any other: a large eps calms them.
CALM = ("train.precision=fp32", "optimizer.eps=1e-3", "checkpoint.every=1", "checkpoint.keep_last=9")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[int, str]]:
    """The key of each sample, by step and rank: the fourth of the batch is rank 1's."""
    run = tmp_path_factory.mktemp("clean")
    train_to_end(run, "train.steps=7")
    return seen(run)


def faults(**faults: object) -> str:
    return json.dumps(faults)


def net(checkpoint: Path) -> dict[str, np.ndarray]:
    """The tensors that an update changes."""
    tensors = consolidated(checkpoint)
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in {"net", "optimizer"}}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_run_stops_and_names_step_rank_and_samples_before_anything_is_saved(
    tmp_path: Path, parallel: str, what: str, keys: dict[int, dict[int, str]]
) -> None:
    batch = keys[BAD]
    bad = batch[8 * BAD + 3]
    words = (*CALM, "train.steps=7", f"train.parallel={parallel}")
    error = train_fails(tmp_path, *words, processes=2, module=MODULE, faults=faults(**{f"nan_{what}": [bad]}))
    assert exit_statuses(tmp_path) == {0: 2, 1: 2}
    if what == "loss":
        assert f"step {BAD}, rank 1: the loss of {bad} is not finite. No weight was changed" in error
        assert "rank 0" not in error
    else:  # the gradient is a sum over all ranks: it can be any of their samples
        for rank in (0, 1):
            named = ", ".join(key for position, key in batch.items() if position % 2 == rank)
            assert f"step {BAD}, rank {rank}: the gradient of {named} is not finite" in error
    assert "train.non_finite=skip" in error
    assert checkpoint_steps(tmp_path) == [1, 2, 3]
    assert max(metrics(tmp_path)) == BAD
    saved = net(tmp_path / "checkpoints" / f"step-{BAD:08d}")
    for rank in (0, 1):
        weights = dict(np.load(tmp_path / f"weights-{rank}.npz"))
        assert same(weights, {name: saved[name] for name in saved if name.startswith("net.")})


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_ranks_skip_the_same_update_and_train_on_as_one_process_does(
    tmp_path: Path, parallel: str, keys: dict[int, dict[int, str]]
) -> None:
    bad = keys[BAD][8 * BAD + 3]
    words = (*CALM, "train.steps=6", "train.non_finite=skip")
    one, two = tmp_path / "one", tmp_path / "two"
    train_to_end(one, *words, module=MODULE, faults=faults(nan_loss=[bad]))
    stderr = train_to_end(
        two, *words, f"train.parallel={parallel}", processes=2, module=MODULE, faults=faults(nan_loss=[bad])
    )
    assert stderr.count("warning: ") == 1
    assert f"warning: step {BAD}, rank 1: the loss of {bad} is not finite; skipped, 1 of 10" in stderr
    assert {step: line.get("skipped") for step, line in metrics(two).items()} == {
        1: None, 2: None, 3: None, 4: 1, 5: 1, 6: 1,
    }  # fmt: skip
    assert all(math.isfinite(value) for line in metrics(two).values() for value in line.values())
    before, at, after = (net(two / "checkpoints" / f"step-{step:08d}") for step in (BAD, BAD + 1, BAD + 2))
    assert same(before, at)
    assert not any(np.array_equal(at[name], after[name]) for name in at if name.endswith(".step"))
    actual, expected = (consolidated(run / "checkpoints" / "step-00000006") for run in (two, one))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name] == pytest.approx(tensor, abs=1e-4), name
    for step, line in metrics(one).items():
        assert metrics(two)[step]["loss"] == pytest.approx(line["loss"], rel=1e-4), step


@pytest.mark.parametrize("processes", [0, 2])
def test_the_limit_of_skipped_updates_holds_across_resumes(
    tmp_path: Path, processes: int, keys: dict[int, dict[int, str]]
) -> None:
    first, second = keys[1][9], keys[5][40]
    words = (*CALM, "train.non_finite=skip", "train.max_skips=1")
    two_nans = faults(nan_loss=[first, second])
    train_to_end(tmp_path, *words, "train.steps=3", processes=processes, module=MODULE, faults=two_nans)
    for _ in range(2):  # resumed twice
        error = train_fails(tmp_path, *words, "train.steps=7", processes=processes, module=MODULE, faults=two_nans)
        assert f"step 5, rank 0: the loss of {second} is not finite" in error
        assert "2 updates were skipped and train.max_skips is 1" in error
        assert checkpoint_steps(tmp_path) == [1, 2, 3, 4, 5]
        assert [line.get("skipped") for line in metrics(tmp_path).values()] == [None, 1, 1, 1, 1]
    more = ("train.steps=7", "train.max_skips=2")
    stderr = train_to_end(tmp_path, *words, *more, processes=processes, module=MODULE, faults=two_nans)
    assert "skipped, 2 of 2" in stderr
    assert metrics(tmp_path)[7]["skipped"] == 2


def test_a_bad_sample_between_two_log_steps_is_found_before_the_next_checkpoint(
    tmp_path: Path, keys: dict[int, dict[int, str]]
) -> None:
    bad = keys[3][24]
    rarely = ("train.log_every=100", "checkpoint.every=2", "train.steps=7")
    error = train_fails(tmp_path, *rarely, module=MODULE, faults=faults(nan_loss=[bad]))
    assert f"step 3, rank 0: the loss of {bad} is not finite" in error
    assert checkpoint_steps(tmp_path) == [2]
