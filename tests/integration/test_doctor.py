"""`diffpipe doctor` under the launcher: all processes take the step, and one of them reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import CONFIG, SHARDS, TINY, diffpipe

WORDS = [*TINY, "data.resolution=8", f"data.train={SHARDS / 'test'}", "data.test=null", "train.precision=fp32"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_step_together_and_one_reports(tmp_path: Path, parallel: str) -> None:
    words = [*WORDS, f"run.dir={tmp_path / 'run'}", f"train.parallel={parallel}"]
    done = diffpipe("doctor", CONFIG, *words, "--json", processes=2)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    assert report["checked"]["processes"] == "2 on 1 machine, micro-batches of 4 images"
    assert "on 4 images" in report["checked"]["step"]
    assert not (tmp_path / "run").exists()


def test_an_error_of_all_processes_is_reported_once_and_ends_them(tmp_path: Path) -> None:
    words = [*WORDS, f"run.dir={tmp_path / 'run'}", "optimizer.lr_factors={other: 2}"]
    done = diffpipe("doctor", CONFIG, *words, processes=2)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("error: optimizer.lr_factors names other") == 1
    assert "step: not tried, as there are errors" in done.stdout
