"""The jobs of a run: from events.jsonl where there is one, and from the log where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.report.metrics_log import read_metrics
from diffpipe.report.run_jobs import read_jobs
from tests.support.report_runs import START, finished_run, log_line, write_lines


def test_each_job_has_its_steps_its_times_and_the_reason_of_its_end(tmp_path: Path) -> None:
    home = finished_run(tmp_path / "run")
    jobs = read_jobs(home, read_metrics(home / "metrics.jsonl"), running=False)
    assert [(job.first, job.last, job.end) for job in jobs] == [
        (0, 333, "stop"),
        (333, 640, "killed"),
        (646, 1000, "finish"),
    ]
    assert [job.resumed for job in jobs] == [False, True, True]
    assert (jobs[0].reason, jobs[0].processes, jobs[0].host) == ("SIGTERM", 2, "node-1")
    assert jobs[0].seconds == pytest.approx(333 / 5)
    assert [[(mark.step, mark.kind) for mark in job.marks] for job in jobs] == [[], [(340, "bad")], [(670, "skipped")]]
    assert jobs[1].marks[0].text == "2 samples could not be read"


def test_the_last_job_is_running_where_the_run_is_held(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [{"step": 0, "event": "start", "time": START}])
    log_path = tmp_path / "metrics.jsonl"
    (job,) = read_jobs(tmp_path, read_metrics(log_path), running=True)
    assert (job.end, job.first, job.last) == ("running", 0, 0)
    write_lines(log_path, [log_line(10), log_line(20)])
    (job,) = read_jobs(tmp_path, read_metrics(log_path), running=True)
    assert (job.end, job.last, job.ended) == ("running", 20, START + 4)
    (job,) = read_jobs(tmp_path, read_metrics(log_path), running=False)
    assert job.end == "killed"


def test_a_failed_job_has_its_error(tmp_path: Path) -> None:
    events = [{"step": 0, "event": "start", "time": START}, {"step": 7, "event": "fail", "error": "UserError: full"}]
    write_lines(tmp_path / "events.jsonl", events)
    (job,) = read_jobs(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), running=False)
    assert (job.end, job.reason, job.last, job.seconds) == ("fail", "UserError: full", 7, None)


def test_a_run_of_an_older_version_has_one_job_whose_end_is_unknown(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [log_line(10), log_line(20)])
    (job,) = read_jobs(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), running=False)
    assert (job.first, job.last, job.end, job.seconds) == (0, 20, "unknown", 2.0)
    (tmp_path / "metrics.jsonl").unlink()
    assert read_jobs(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), running=False) == []


def test_events_that_are_none_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"step": 1, "event": "finish"}\n{"step": 1, "event": ["start"]}\n{"step": 1e9, "event": "start"}\nnot json\n'
        '{"step": 2, "event": "start", "time": 1e300, "processes": true, "host": {"a": 1}}\n{"step": 3, "ev'
    )
    (job,) = read_jobs(tmp_path, read_metrics(tmp_path / "metrics.jsonl"), running=False)
    assert (job.first, job.began, job.processes, job.host) == (2, None, 0, "{'a': 1}")
