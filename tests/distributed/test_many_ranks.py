"""Memory and traffic of one of 64 and of 512 processes, counted without the others: what must not grow with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.train.parallel import ParallelStrategy
from diffpipe.train.runtime import Runtime
from eval.speed.benchmark import NoiseTraining
from eval.speed.many_ranks import Counts, count_score, count_step, fake_ranks
from eval.speed.memory import LiveBytes
from tests.support.commands import SHARDS

DIM = 128
SUMS = 8 * (1 + DIM + DIM**2)  # float64: n, Σx and Σxxᵀ
# 512 channels: fsdp pads each tensor's first dimension to a multiple of the number of processes.
WIDE = ["channels=64", "channel_mult=[8]", "blocks=1", "attention=[8]"]

worlds = pytest.mark.parametrize("world", [64, 512])


@pytest.fixture
def bf16() -> Iterator[Runtime]:
    with Runtime.start("bf16", "cpu") as runtime:
        yield runtime


def training(runtime: Runtime) -> NoiseTraining:
    words = [f"stage.network.{word}" for word in WIDE]
    words += ["data.resolution=8", "train.parallel=fsdp", f"data.batch_size={runtime.world}"]
    return NoiseTraining(load_config(Experiment, SHARDS.parent / "ddpm.yaml", words), runtime)


def parameter_bytes(training: NoiseTraining) -> int:
    """The bytes of the whole networks, of which this process holds a share."""
    return sum(p.numel() * p.element_size() for net in training.trainer.nets.values() for p in net.parameters())


def step(runtime: Runtime, world: int) -> tuple[Counts, int, int]:
    """The counts of a step, the bytes of all parameters, and the number of groups that are gathered together."""
    with fake_ranks(runtime, world) as rank:
        one = training(rank)
        groups = sum(isinstance(module, FSDPModule) for net in one.trainer.nets.values() for module in net.modules())
        return count_step(one), parameter_bytes(one), groups


@worlds
def test_a_step_keeps_no_gathered_parameters_and_gathers_them_in_bf16(bf16: Runtime, world: int) -> None:
    counts, whole, groups = step(bf16, world)
    assert counts.kept < 0.05 * whole
    assert counts.peak < 0.55 * whole
    assert whole <= counts.traffic.bytes["allgather"] < 1.1 * whole  # half the size, in both passes
    assert whole <= counts.traffic.bytes["reduce_scatter"] < 1.1 * whole  # in float32
    assert counts.traffic.calls == {"allgather": 2 * groups - 1, "reduce_scatter": groups}  # the outermost is kept
    assert counts.pickled == 0


def test_autocast_would_keep_half_of_them_and_gather_twice_the_bytes(
    bf16: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParallelStrategy, "_policy", lambda *_: MixedPrecisionPolicy())
    counts, whole, _ = step(bf16, 64)
    assert counts.kept > 0.5 * whole
    assert counts.peak > 0.85 * whole
    assert counts.traffic.bytes["allgather"] > 1.9 * whole


@worlds
def test_no_process_but_rank_0_ever_holds_whole_networks(bf16: Runtime, world: int) -> None:
    peaks = []
    for rank in (0, 1):
        with fake_ranks(bf16, world, rank) as runtime, LiveBytes() as live:
            whole = parameter_bytes(training(runtime))
        peaks.append(live.peak / whole)
    on_the_host, elsewhere = peaks
    assert on_the_host < 1.05
    assert elsewhere < 0.2  # the largest tensor, and the shares of the networks and the averages


@worlds
def test_a_score_is_one_reduction_that_does_not_grow_with_the_processes(bf16: Runtime, world: int) -> None:
    with fake_ranks(bf16, world) as runtime:
        counts = count_score(runtime, DIM, ["fid"])
    assert counts.traffic.calls == {"allreduce": 1}
    assert counts.traffic.bytes["allreduce"] == 3 * SUMS  # generated, reference, floor
    assert counts.pickled < 100
    assert counts.peak < 8 * SUMS


@worlds
def test_a_kernel_distance_gathers_each_feature_and_each_hash_once(bf16: Runtime, world: int) -> None:
    with fake_ranks(bf16, world) as runtime:
        counts = count_score(runtime, DIM, ["fid", "kid"])
    assert counts.traffic.calls == {"allreduce": 1, "allgather": 2 * 3}
    assert counts.traffic.bytes["allgather"] == 3 * 2 * CHUNK * world * (DIM * 4 + 8)
    assert counts.pickled < 100
