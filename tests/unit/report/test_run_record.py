"""What a report reads: all of a run, little of one that has just begun, and nothing of what is no run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.report.run_record import read_run
from tests.support.report_runs import finished_run, write_config, write_lines, write_state


def test_a_finished_run_is_read_in_full(tmp_path: Path) -> None:
    home = finished_run(tmp_path / "run")
    (home / "checkpoints" / "damaged-step-00000500").mkdir()
    record = read_run(home)
    assert (record.step, record.last_step, record.status.state) == (1000, 1000, "finished")
    assert (record.checkpoints, record.damaged) == ([1000], ["damaged-step-00000500"])
    assert record.state is not None
    assert len(record.state.bad_samples) == 2
    assert (record.log.lines, len(record.jobs), len(record.grids.grids), len(record.scores.files)) == (100, 3, 10, 3)


def test_a_run_that_has_just_begun_is_read_too(tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=50")
    record = read_run(tmp_path)
    assert (record.step, record.last_step, record.state, record.status.state) == (0, 50, None, "unknown")


def test_a_budget_of_time_has_its_expected_last_step(tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=5000")
    write_lines(tmp_path / "metrics.jsonl", [{"step": 10, "loss": 1.0, "last_step": 1234}])
    assert read_run(tmp_path).last_step == 1234


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    write_state(tmp_path, 100)
    write_state(tmp_path, 200)
    (tmp_path / "checkpoints" / "step-00000200" / "state.json").write_text('{"format": "<b>"}')
    record = read_run(tmp_path)
    assert record.state is not None
    assert (record.state.step, record.step, record.checkpoints) == (100, 200, [200, 100])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory; give a run directory"):
        read_run(tmp_path / "absent")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: not a run directory: no config.yaml")):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: .*; make it readable"):
        read_run(tmp_path)
