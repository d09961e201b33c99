"""The progress of training in a file is lines of their own, at most one each ten seconds, and the last one."""

from __future__ import annotations

import pytest

from diffpipe.train.progress import TrainProgress
from diffpipe.train.runtime import Runtime


def values(step: int) -> dict[str, float]:
    return {"step": step, "images": 8 * step, "loss": 1 / step, "images_per_second": 40.0, "data_wait": 0.031}


def test_lines_are_ten_seconds_apart_and_the_last_step_has_one(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 0.0, 0.0, 5.0, 10.0, 10.0, 12.0, 12.0])  # three readings, then two per line, one without
    progress = TrainProgress(100, 0, runtime, terminal=False, clock=lambda: next(seconds))
    for step in (1, 2, 3, 100):
        progress.log(values(step))
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 1/100: loss 1.0000, 40 images/s, 3% of the time waiting for data, 20 s left",
        "step 3/100: loss 0.3333, 40 images/s, 3% of the time waiting for data, 19 s left",
        "step 100/100: loss 0.0100, 40 images/s, 3% of the time waiting for data",
    ]


def test_a_terminal_has_a_bar(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainProgress(2, 0, runtime, terminal=True)
    progress.step_done()
    progress.log(values(1))
    progress.close()
    written = capsys.readouterr().err
    assert "train:" in written
    assert "step 1/2" not in written
