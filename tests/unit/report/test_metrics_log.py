"""metrics.jsonl as columns: a partial last line, damaged lines, values that are no numbers, and lines out of order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from diffpipe.report import metrics_log
from diffpipe.report.metrics_log import read_metrics


def test_each_key_is_a_column_of_its_own_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN, "validation_loss": 3}\n{"step": 3, "lo')
    log = read_metrics(path)
    assert (log.lines, log.damaged) == (2, 0)
    assert log.columns["loss"].steps.tolist() == [1, 2]
    assert math.isnan(log.columns["loss"].values[1])
    assert log.columns["validation_loss"].steps.tolist() == [2]
    assert (log.last("loss"), log.last("validation_loss"), log.last("absent")) == (None, 3.0, None)
    assert (log.at("loss", 1.5), log.at("loss", 0.0), log.at("absent", 1.0)) == (2.0, None, None)


def test_damaged_lines_and_other_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    huge = "9" * 400
    path.write_bytes(
        b'not json\n[1]\n{"loss": 1.0}\n{"step": -1, "loss": 1}\n\xff\n'
        + f'{{"step": {huge}, "loss": 1}}\n'.encode()
        + f'{{"step": 4, "loss": "<b>", "lr": true, "images": {huge}, "grad_norm": 1.5}}\n'.encode()
    )
    log = read_metrics(path)
    assert (log.lines, log.damaged) == (1, 6)
    assert {*log.columns} == {"step", "images", "grad_norm"}
    assert log.columns["images"].values.tolist() == [math.inf]


def test_lines_out_of_order_are_sorted_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3, "loss": 1}\n{"step": 1, "loss": 2}\n{"step": 3, "loss": 4}\n')
    column = read_metrics(path).columns["loss"]
    assert (column.steps.tolist(), column.values.tolist()) == ([1, 3], [2, 4])


def test_a_thousand_keys_and_an_endless_line_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keys = ", ".join(f'"k{i}": 1' for i in range(1000))
    path.write_bytes(b"x" * (3 << 20) + b"\n" + f'{{"step": 1, {keys}}}\n'.encode())
    log = read_metrics(path)
    assert log.lines == 1
    assert len(log.columns) == 200


def test_of_a_large_log_lines_at_equal_distances_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "_MOST_READ", 1 << 16)
    monkeypatch.setattr(metrics_log, "_BLOCK", 1 << 11)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": {step / 2}}}\n' for step in range(100_000)) + '{"step": 7')
    log = read_metrics(path)
    steps, values = log.columns["loss"]
    assert (log.damaged, log.lines) == (0, len(steps))
    assert 0.8 * log.share * 100_000 < log.lines < 1.2 * log.share * 100_000 < 3000
    assert (steps[0], steps[-1]) == (0, 99_999)
    assert np.diff(steps).max() < 1.1 * 100_000 / 32
    np.testing.assert_array_equal(values, steps / 2)


def test_no_file_has_no_lines_and_a_folder_is_an_error(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl").lines == 0
    with pytest.raises(OSError, match="directory"):
        read_metrics(tmp_path)
