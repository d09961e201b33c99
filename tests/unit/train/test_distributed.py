"""The communicator: one process alone needs no process group, and an error of one rank is raised on all."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from diffpipe.errors import UserError
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from tests.support.thread_ranks import on_ranks


def test_a_process_alone_exchanges_with_itself() -> None:
    alone, value = Communicator(), torch.arange(3.0)
    assert not dist.is_initialized()
    assert alone.main
    assert alone.gather("x") == ["x"]
    assert torch.equal(alone.sum(value), torch.arange(3.0))
    alone.broadcast(value)
    alone.barrier()
    assert alone.new_group() is alone
    assert alone.raise_on_all_ranks(lambda: 7) == 7


def test_a_user_error_of_one_rank_is_raised_on_all() -> None:
    def raised(runtime: Runtime) -> str:
        def action() -> int:
            if runtime.rank:
                raise UserError(f"rank {runtime.rank} has no disk")
            return 0

        try:
            runtime.comm.raise_on_all_ranks(action)
        except UserError as error:
            return str(error)
        return "no error"

    assert on_ranks(3, raised) == ["rank 1 has no disk"] * 3


def test_without_an_error_each_rank_has_its_own_result() -> None:
    assert on_ranks(3, lambda runtime: runtime.comm.raise_on_all_ranks(lambda: runtime.rank)) == [0, 1, 2]


def test_another_error_is_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        Communicator().raise_on_all_ranks(lambda: 1 // 0)


def test_a_full_disk_on_one_rank_is_a_sentence_on_all() -> None:
    def raised(runtime: Runtime) -> str:
        def action() -> None:
            if runtime.rank:
                raise OSError(28, "No space left on device", "/disk/file")

        with pytest.raises(UserError) as caught:
            runtime.comm.raise_on_all_ranks(action)
        return str(caught.value)

    assert on_ranks(2, raised) == ["/disk/file: No space left on device; free some space"] * 2


def test_rank_zero_acts_for_all() -> None:
    assert on_ranks(3, lambda runtime: runtime.comm.on_rank_zero(lambda: f"from {runtime.rank}")) == ["from 0"] * 3
    with pytest.raises(UserError, match="none here"):
        Communicator().on_rank_zero(lambda: (_ for _ in ()).throw(UserError("none here")))
