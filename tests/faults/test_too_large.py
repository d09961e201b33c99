"""A job that needs more than the machine has: refused before its first step, by one line that says what needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training_jobs import checkpoint_steps, train_fails


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        # More than any machine has, so that none tries.
        (["data.workers=10000000"], "data.workers asks for 10000000 loader processes on this machine"),
        (["data.batch_size=1000000000000"], "are for the activations of the networks"),
    ],
)
def test_a_job_that_the_machine_cannot_hold_is_refused_before_a_step(
    tmp_path: Path, words: list[str], reason: str
) -> None:
    error = train_fails(tmp_path, "train.steps=2", *words)
    assert reason in error
    assert "; lower data.workers" in error or "lower data.batch_size" in error
    assert checkpoint_steps(tmp_path) == []
    assert not (tmp_path / "metrics.jsonl").exists()
