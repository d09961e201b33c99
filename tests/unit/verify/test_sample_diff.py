"""Every way in which a resumed run can see other samples is found."""

from __future__ import annotations

import json
from pathlib import Path

from diffpipe.verify.sample_diff import SampleRecord, count_repeated_steps, read_seen, sample_differences
from tests.support.sample_records import BATCH, STEPS, UNINTERRUPTED, attempt


def differences(*attempts: list[SampleRecord]) -> list[str]:
    return sample_differences(UNINTERRUPTED, attempts, STEPS, BATCH)


def changed(records: list[SampleRecord], step: int, **by: list[object]) -> list[SampleRecord]:
    """The first record of the step with other positions or keys."""
    i = next(i for i, record in enumerate(records) if record.step == step)
    return [*records[:i], records[i]._replace(**by), *records[i + 1 :]]


def test_the_same_samples_at_other_world_sizes_are_the_same() -> None:
    pieces = [attempt(0, 3, 1), attempt(2, 5, 2), attempt(4, STEPS, 4)]
    assert differences(*pieces) == []
    assert count_repeated_steps(pieces) == 2
    # A kill may come between two ranks: the second has not recorded what the first has.
    assert differences(attempt(0, 3, 2)[:-1], attempt(2, STEPS, 1)) == []


def test_a_swapped_key_is_found() -> None:
    swapped = changed(attempt(2, STEPS, 1), 3, keys=["image13", "image12", "image14", "image15"])
    result = differences(attempt(0, 3, 1), swapped)
    assert result[0] == "step 3 of attempt 2 has image13 at position 12, and the uninterrupted run has image12"
    assert len(result) == 2


def test_a_lost_step_is_found() -> None:
    assert differences(attempt(0, 3, 1), attempt(4, STEPS, 1)) == ["step 3 lacks 4 positions, 12 the first"]


def test_a_rank_that_lost_its_share_is_found_though_a_killed_attempt_had_it() -> None:
    lost = [record for record in attempt(2, STEPS, 2) if (record.step, record.positions[0]) != (2, 9)]
    assert differences(attempt(0, 4, 1), lost) == ["step 2 lacks 2 positions, 9 the first"]


def test_a_step_trained_again_with_other_samples_is_found() -> None:
    other = changed(attempt(2, STEPS, 1), 2, positions=[*range(12, 16)], keys=[f"image{i}" for i in range(12, 16)])
    result = differences(attempt(0, 3, 1), other)
    assert result[0] == "step 2 of attempt 2 has image12 at position 12, and the uninterrupted run has no such position"
    assert "step 2 lacks 4 positions, 8 the first" in result
    # In an attempt that was killed, too, and whose step another has trained since.
    assert differences(other, attempt(0, STEPS, 1)) != []


def test_a_position_on_two_ranks_is_found() -> None:
    twice = changed(attempt(0, STEPS, 2), 1, positions=[4, 5], keys=["image4", "image5"])
    assert "step 1 of attempt 1 has position 5 twice" in differences(twice)


def test_an_uninterrupted_run_that_is_not_the_stream_is_found() -> None:
    gap = [record for record in UNINTERRUPTED if record.step != 4]
    result = sample_differences(gap, [gap], STEPS, BATCH)
    assert result == ["step 4 of the uninterrupted run lacks 4 positions, 16 the first"]


def test_seen_is_read_from_all_ranks_without_the_line_that_a_kill_has_cut(tmp_path: Path) -> None:
    for rank in range(2):
        lines = [record._asdict() for record in attempt(0, 2, 2)[2 * rank : 2 * rank + 2]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"rank-{rank:05d}.jsonl").write_text(text + '{"step": 2, "positi')
    assert read_seen(tmp_path) == attempt(0, 2, 2)
