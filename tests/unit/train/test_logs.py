"""The log files: a resumed run drops the lines of steps that it trains again, and a partial last line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from diffpipe.train.distributed import Communicator
from diffpipe.train.logs import MetricsLog, SampleLog, print_on_rank_zero, progress_bar
from diffpipe.train.runtime import Runtime
from tests.support.toy_stages import batch


def test_lines_after_the_resumed_step_are_dropped(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 5.0}\n{"step": 4, "loss": 4.0}\n{"step": 6, "loss": 3.0}\n{"step": 8, "lo')
    calls = []
    log = MetricsLog(path, runtime, step=4, on_log=lambda values, step: calls.append((dict(values), step)))
    log.write({"step": 6, "loss": 2.5})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 5.0}, {"step": 4, "loss": 4.0}, {"step": 6, "loss": 2.5}]
    assert calls == [({"loss": 2.5}, 6)]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(runtime: Runtime, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", runtime, step=0)
    log.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    log.close()


def test_another_rank_writes_no_metrics_and_shows_nothing(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = dataclasses.replace(runtime, comm=Communicator(rank=1, world=2))
    log = MetricsLog(tmp_path / "metrics.jsonl", second, step=0)
    log.write({"step": 1})
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()
    print_on_rank_zero(second, "a warning")
    assert progress_bar("train", "step", 3, second).disable
    assert capsys.readouterr().err == ""
    print_on_rank_zero(runtime, "a warning")
    assert capsys.readouterr().err == "a warning\n"
    assert progress_bar(None, "step", 3, runtime).disable


def test_the_sample_log_has_the_samples_of_all_micro_batches_of_a_step(tmp_path: Path) -> None:
    for step in (0, 1):
        log = SampleLog(tmp_path, rank=3)  # a resume goes on in the file
        log.write(step, [batch([4, 5]), batch([6])])
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "seen" / "rank-00003.jsonl").read_text().splitlines()]
    samples = {"keys": ["key4", "key5", "key6"], "positions": [4, 5, 6]}
    assert lines == [{"step": 0, **samples}, {"step": 1, **samples}]
