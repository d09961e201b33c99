"""Updates that were left out: how they are named, counted, and when they end the run."""

from __future__ import annotations

import pytest

from diffpipe.train.config import TrainConfig
from diffpipe.train.distributed import Communicator
from diffpipe.train.nonfinite import NonFiniteError, NonFiniteUpdate, handle_nonfinite

ALONE = Communicator()
SKIP = TrainConfig(steps=9, non_finite="skip", max_skips=2)


def update(step: int, phase: str = "", keys: int = 1) -> NonFiniteUpdate:
    return NonFiniteUpdate(step, phase, "loss", 1, tuple(f"key{i}" for i in range(keys)))


def test_an_update_names_its_phase_and_eight_of_its_samples() -> None:
    assert str(update(3)) == "step 3, rank 1: the loss of key0 is not finite"
    named = ", ".join(f"key{i}" for i in range(8))
    assert str(update(3, "fit/", 10)) == f"step 3, rank 1: fit: the loss of {named} and 2 more is not finite"


def test_updates_are_counted_once_however_many_ranks_report_them(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = [update(4), update(4)._replace(rank=0)]
    assert handle_nonfinite(ranks, 0, SKIP, ALONE) == 1
    assert handle_nonfinite([update(4, "a/"), update(4, "b/")], 0, SKIP, ALONE) == 2
    assert "; skipped, 1 of 2" in capsys.readouterr().err
    assert handle_nonfinite([], 5, SKIP, ALONE) == 5
    handle_nonfinite([update(4)], 0, SKIP, Communicator(rank=1, world=2))
    assert capsys.readouterr().err == ""


def test_the_run_ends_above_the_limit_or_at_the_first_one() -> None:
    with pytest.raises(NonFiniteError, match=r"3 updates were skipped and train\.max_skips is 2"):
        handle_nonfinite([update(8)], 2, SKIP, ALONE)
    with pytest.raises(NonFiniteError, match=r"step 8, rank 1: .*or set train\.non_finite=skip"):
        handle_nonfinite([update(8)], 0, TrainConfig(steps=9), ALONE)


def test_four_updates_are_named_and_the_others_counted() -> None:
    with pytest.raises(NonFiniteError, match=r"step 3, rank 1: [^;]*; 2 more\. No weight"):
        handle_nonfinite([update(step) for step in range(6)], 0, TrainConfig(steps=9), ALONE)
