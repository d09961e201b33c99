"""The events of a run: a line where a job starts and one where it ends, whatever the end."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.run_folder import EVENTS
from diffpipe.train.distributed import Communicator
from diffpipe.train.run_events import recorded_events
from diffpipe.train.runtime import Runtime


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / EVENTS).read_text().splitlines()]


def test_each_job_has_a_line_for_its_start_and_one_for_its_end(runtime: Runtime, tmp_path: Path) -> None:
    steps = iter([0, 5, 5, 7, 7, 9, 9])
    with recorded_events(tmp_path, runtime, lambda: next(steps), resumed=False) as record_stop:
        record_stop(signal.SIGTERM)
    with pytest.raises(UserError), recorded_events(tmp_path, runtime, lambda: next(steps), resumed=True):
        raise UserError("the disk is full")
    with recorded_events(tmp_path, runtime, lambda: next(steps), resumed=True):
        pass
    lines = events(tmp_path)
    assert [(line["step"], line["event"]) for line in lines] == [
        (0, "start"),
        (5, "stop"),
        (5, "resume"),
        (7, "fail"),
        (7, "resume"),
        (9, "finish"),
    ]
    assert lines[1]["signal"] == "SIGTERM"
    assert "the disk is full" in lines[3]["error"]
    assert all(line["processes"] == 1 and line["host"] for line in lines[::2])
    times = [line["time"] for line in lines]
    assert times == sorted(times)


def test_a_killed_job_leaves_no_last_line(runtime: Runtime, tmp_path: Path) -> None:
    job = recorded_events(tmp_path, runtime, lambda: 0, resumed=False)
    job.__enter__()  # and never left: SIGKILL
    assert [line["event"] for line in events(tmp_path)] == ["start"]


def test_another_rank_writes_nothing(runtime: Runtime, tmp_path: Path) -> None:
    second = dataclasses.replace(runtime, comm=Communicator(rank=1, world=2))
    with recorded_events(tmp_path, second, lambda: 0, resumed=False) as record_stop:
        record_stop(signal.SIGTERM)
    assert not (tmp_path / EVENTS).exists()
