"""How processes share the batch and the shards, and their threads and open files."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.experiment.doctor.processes import shared_lanes, too_few_files, too_many_threads, uneven_shares
from diffpipe.experiment.resources import JobSize
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return shard_set.load(indexed_shards(tmp_path / "images", *[6] * 8))


@pytest.mark.parametrize(
    ("batch", "world", "accumulate", "idle"),
    [(64, 8, 1, None), (64, 8, 2, None), (9, 8, 1, "44%"), (1001, 8, 1, None), (17, 4, 2, "29%")],
)
def test_uneven_shares_are_found_where_they_cost_a_tenth_or_more(
    batch: int, world: int, accumulate: int, idle: str | None
) -> None:
    experiment = CASES["ddpm"].experiment(f"data.batch_size={batch}", f"train.accumulate={accumulate}")
    finding = uneven_shares(experiment, JobSize(world, world))
    assert (finding is None) == (idle is None)
    if finding is not None:
        assert f"{idle} of the time" in finding.problem


def test_machines_that_would_all_fetch_all_remote_shards_are_found(shards: ShardSet) -> None:
    words = ("data.shuffle_window=16", "data.interleave=4", "data.batch_size=12")
    experiment = CASES["ddpm"].experiment(*words)
    assert shared_lanes(experiment, shards, JobSize(3, 1)) is None
    far = ShardSet([shard._replace(remote=object()) for shard in shards.shards])  # pyright: ignore[reportArgumentType]
    assert shared_lanes(experiment, far, JobSize(3, 3)) is None
    assert shared_lanes(experiment, far, JobSize(4, 1)) is None
    finding = shared_lanes(experiment, far, JobSize(3, 1))
    assert finding is not None
    assert "3 processes on 3 machines share 4 lanes of remote shards and batches of 12" in finding.problem
    assert finding.remedy == "take a power of two of processes"
    finding = shared_lanes(experiment, far, JobSize(8, 2))
    assert finding is not None
    remedy = ["data.batch_size=16", "data.interleave=8", "data.shuffle_window=64"]
    assert finding.remedy == "set data.batch_size to a multiple of 8, data.interleave=8 and data.shuffle_window=64"
    far = ShardSet([*far.shards] * 3)
    assert shared_lanes(CASES["ddpm"].experiment(*words, *remedy), far, JobSize(8, 2)) is None
    assert shared_lanes(CASES["ddpm"].experiment("data.batch_size=12"), far, JobSize(3, 1)) is None  # one window


def test_threads_are_counted_over_the_processes_of_a_machine() -> None:
    assert too_many_threads(JobSize(16, 4), 2, 8) is None
    assert too_many_threads(JobSize(16, 16), 1, 8) is None
    finding = too_many_threads(JobSize(16, 4), 3, 8)
    assert finding is not None
    assert "4 processes with 3 threads each compute on 8 processors" in finding.problem
    assert finding.remedy == "set OMP_NUM_THREADS=2"


def test_a_process_needs_a_connection_to_every_other_one(shards: ShardSet) -> None:
    experiment = CASES["ddpm"].experiment()
    assert too_few_files(experiment, shards, JobSize(512, 8), None) is None
    assert too_few_files(experiment, shards, JobSize(512, 8), 4096) is None
    assert too_few_files(experiment, shards, JobSize(1, 1), 256) is None
    finding = too_few_files(experiment, shards, JobSize(512, 8), 1024)
    assert finding is not None
    assert finding.level == "error"
    assert finding.remedy == "raise `ulimit -Hn`"
