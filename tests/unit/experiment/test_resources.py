"""The memory and processes of a job, reckoned before its first step."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import diffpipe.machine
from diffpipe.errors import UserError
from diffpipe.experiment import resources
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.resources import JobSize, resource_warnings
from diffpipe.machine import WORKER_BYTES
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES

GB = 10**9


@pytest.fixture
def reckon(tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The warnings for a run of 12 images with these overrides, on a machine of 8 GB and 4 processors."""
    images = indexed_shards(tmp_path / "images", 6, 6)
    machine = SimpleNamespace(memory=8 * GB, processes=30_000, processors=4)
    monkeypatch.setattr(resources, "available_memory", lambda: machine.memory)
    monkeypatch.setattr(diffpipe.machine, "available_processes", lambda: machine.processes)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(machine.processors)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def run(*words: str, **changes: int) -> list[str]:
        vars(machine).update(changes)
        words = ("data.batch_size=4", "data.test=null", f"run.dir={tmp_path}", f"data.train={images}", *words)
        experiment = CASES["ddpm"].experiment(*words)
        shards, shape = open_data(experiment, 1)
        trainer = Trainer(
            experiment.stage.build(shape, {}),
            runtime,
            experiment.train,
            experiment.optimizer,
            experiment.ema,
            seed=0,
            batch_size=experiment.data.batch_size,
        )
        return resource_warnings(experiment, trainer, shards, shape)

    return run


def test_a_job_that_fits_is_left_alone(reckon: Any) -> None:
    assert reckon() == []


def test_a_batch_of_more_samples_than_there_are_is_a_warning(reckon: Any) -> None:
    (warning,) = reckon("data.batch_size=100")
    assert warning.startswith("data.batch_size=100 is more than there are samples (12)")


def test_a_batch_whose_activations_find_no_room_is_refused_before_it_is_tried(reckon: Any) -> None:
    with pytest.raises(
        UserError, match=r"at least [\d.]+ GB of memory .* are for the activations of the networks: lower"
    ):
        reckon("data.batch_size=1000000", "data.workers=0")


def test_it_is_the_micro_batch_that_counts(reckon: Any) -> None:
    (warning,) = reckon("data.batch_size=1000000", "data.workers=0", "train.accumulate=10000")
    assert warning.startswith("data.batch_size=1000000 is more than")


def test_batches_that_the_loader_holds_count(reckon: Any) -> None:
    with pytest.raises(UserError, match=r"for the batches that the loader holds ready \(20003 of 10000 images\)"):
        reckon("data.batch_size=10000", "data.workers=2", "data.prefetch=10000")


@pytest.mark.parametrize("ranks", ["1", "8"])
def test_loader_processes_of_all_ranks_of_the_machine_count(
    reckon: Any, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    workers = 240 // int(ranks)
    sentences = reckon(f"data.workers={workers}", memory=100 * GB)
    (sentence,) = sentences
    crowd = "data.workers asks for 240 loader processes on 4 processors: more than 4 hardly make anything faster"
    assert sentence == f"{crowd}; lower data.workers"
    with pytest.raises(UserError, match=r"4\.8 GB are for the .* loader processes"):
        reckon(f"data.workers={workers}", memory=4 * GB)
    with pytest.raises(UserError, match="240 loader processes on this machine, and 300 more processes and threads"):
        reckon(f"data.workers={workers}", processes=300, memory=100 * GB)
    with pytest.raises(UserError, match="so many stop the machine"):
        reckon(f"data.workers={workers}", processes=30_000, memory=100 * GB, processors=2)


def test_what_nearly_fills_the_memory_is_a_warning(reckon: Any) -> None:
    (sentence,) = reckon("data.workers=16", memory=16 * WORKER_BYTES + 20_000_000)
    assert sentence.startswith("the job needs at least 0.3 GB of memory on this machine, and 0.3 GB are free")


def test_the_size_of_a_job_is_that_of_its_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert JobSize.launched(20) == JobSize(20, 8)
    assert JobSize(20, 8).machines == 3
    experiment = CASES["ddpm"].experiment("data.batch_size=101", "train.accumulate=2")
    assert JobSize(20, 8).micro_batch(experiment) == 3
