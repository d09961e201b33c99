"""The parallel strategy in one process: what is chosen, what is refused, and which gradients stay local."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train.distributed import Communicator
from diffpipe.train.parallel import ParallelStrategy, full_tensor, has_parameters
from diffpipe.train.runtime import Runtime


@pytest.mark.parametrize("parallel", ["auto", "ddp", "fsdp", "hsdp"])
def test_one_process_holds_a_full_copy_whatever_the_strategy(runtime: Runtime, parallel) -> None:
    strategy, net = ParallelStrategy.of(parallel, None, runtime), nn.Linear(2, 2)
    assert strategy.mesh is None
    assert not strategy.in_buckets
    strategy.shard(net)
    assert strategy.wrap(net) is net
    with strategy.update([net], penalizes=True), strategy.no_sync([net]):
        net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None
    assert full_tensor(net.weight) is net.weight


def test_contradictory_options_are_refused(runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"train\.shard_size is for train\.parallel=hsdp, and this job is ddp"):
        ParallelStrategy.of("auto", 2, runtime)
    launched = dataclasses.replace(runtime, launched_for_fsdp=True)
    with pytest.raises(UserError, match=r"train\.shard_size .*and this job is fsdp"):
        ParallelStrategy.of("auto", 2, launched)
    with pytest.raises(UserError, match=r"started with FSDP, and train\.parallel is ddp"):
        ParallelStrategy.of("ddp", None, launched)


@pytest.mark.parametrize(("shard_size", "nodes"), [(4, None), (None, "4")])
def test_processes_that_cannot_be_divided_are_refused(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, shard_size: int | None, nodes: str | None
) -> None:
    if nodes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", nodes)
    six = dataclasses.replace(runtime, comm=Communicator(rank=0, world=6))
    with pytest.raises(UserError, match=r"6 processes cannot be divided into copies of 4 each.*a divisor of 6"):
        ParallelStrategy.of("hsdp", shard_size, six)


def test_a_network_of_buffers_alone_has_nothing_to_train() -> None:
    assert has_parameters(nn.Linear(1, 1))
    assert not has_parameters(nn.BatchNorm1d(2, affine=False))
