"""Work in chunks: the same pieces in the same order on any number of ranks, and an error on one is one on all."""

from __future__ import annotations

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.train.runtime import Runtime
from tests.support.thread_ranks import on_ranks


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_all_results_in_order_and_each_chunk_was_done_once(world: int) -> None:
    done: list[range] = []

    def each(chunk: range) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        done.append(chunk)
        return torch.tensor(chunk)

    results = on_ranks(world, lambda runtime: map_over_ranks(230, each, runtime))
    assert sorted(done, key=lambda chunk: chunk.start) == [range(i, min(i + 50, 230)) for i in range(0, 230, 50)]
    assert [len(part) for part in results[0]] == [50, 50, 50, 50, 30]
    for parts in results:
        assert torch.equal(torch.cat(parts), torch.arange(230))


def test_what_one_rank_refuses_all_refuse() -> None:
    def each(chunk: range) -> int:
        if 60 in chunk:
            raise UserError("image 60 is broken")
        return len(chunk)

    def run(runtime: Runtime) -> str:
        with pytest.raises(UserError) as caught:
            map_over_ranks(130, each, runtime)
        return str(caught.value)

    assert on_ranks(2, run) == ["image 60 is broken"] * 2


def test_the_bar_is_shown_where_it_has_a_title(capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Runtime.start("fp32", "cpu")
    assert map_over_ranks(60, len, runtime) == [50, 10]
    assert capfd.readouterr().err == ""
    map_over_ranks(60, len, runtime, "count")
    assert capfd.readouterr().err.startswith("count: 60/60 images in ")
