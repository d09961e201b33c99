"""The jobs on a page: places in percent of all steps, the newest row first, and no more than fit."""

from __future__ import annotations

from diffpipe.report.run_jobs import Mark, RunJob
from diffpipe.report.timeline import MOST_JOBS, job_rows, timeline, when

JOBS = [
    RunJob(0, 1.8e9, processes=2, host="a", last=50, ended=1.8e9 + 90, end="fail", reason="UserError: full"),
    RunJob(40, None, resumed=True, last=200, end="running", marks=[Mark(100.0, "bad", "1 sample could not be read")]),
]


def test_the_line_has_bars_ends_and_marks_in_percent() -> None:
    line = timeline(JOBS, 200.0)
    assert line["bars"] == [(0, 25), (20, 80)]
    assert line["ends"] == [(25, "fail")]
    assert line["marks"] == [(50, "bad")]
    assert line["labels"][0] == (0, "0")
    assert line["labels"][-1] == (100, "200")


def test_the_newest_job_has_the_first_row_and_lost_steps_are_told() -> None:
    last, first = job_rows(JOBS)
    assert (last["title"], last["end_text"], last["about"]) == ("Steps 40 to 200, resumed", "running", "")
    assert last["happened"] == [("100", "bad", "1 sample could not be read")]
    assert first["title"] == "Steps 0 to 50"
    assert first["end_text"] == "failed: UserError: full; 10 steps trained again"
    assert first["about"].endswith("1 min 30 s · 2 processes on a")


def test_the_newest_of_very_many_jobs_are_shown() -> None:
    jobs = [RunJob(i, None, last=i + 1) for i in range(MOST_JOBS + 50)]
    rows = job_rows(jobs)
    assert (len(rows), rows[0]["title"]) == (MOST_JOBS, f"Steps {MOST_JOBS + 49} to {MOST_JOBS + 50}")
    assert len(timeline(jobs, 1000.0)["bars"]) == MOST_JOBS


def test_a_time_is_a_day_and_a_minute() -> None:
    assert "2027, " in when(1.8e9)
