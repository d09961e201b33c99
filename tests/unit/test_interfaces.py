"""The steps at which a phase is due."""

from __future__ import annotations

import pytest

from diffpipe.interfaces import Phase


@pytest.mark.parametrize(
    ("phase", "due"),
    [
        (Phase("a", ()), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Phase("a", (), every=3), [0, 3, 6, 9]),
        (Phase("a", (), every=3, start=2), [2, 5, 8]),
        (Phase("a", (), every=3, start=2, until=8), [2, 5]),
        (Phase("a", (), until=0), []),
    ],
)
def test_a_phase_is_due_from_its_start_at_every_step_that_is_a_multiple(phase: Phase, due: list[int]) -> None:
    assert [step for step in range(10) if phase.due(step)] == due
