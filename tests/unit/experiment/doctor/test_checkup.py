"""All checks of a config together; tests/unit/cli/test_doctor.py plants troubles for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffpipe.experiment.doctor import checkup
from diffpipe.experiment.doctor.checkup import diagnose
from diffpipe.experiment.resources import JobSize
from diffpipe.train.distributed import Communicator
from tests.support.commands import CONFIG
from tests.support.runs import TINY_WORDS, indexed_shards


def test_several_troubles_are_found_together(tmp_path: Path) -> None:
    words = [*TINY_WORDS, f"data.train={indexed_shards(tmp_path / 'images', 12)}", f"run.dir={tmp_path / 'run'}"]
    words += ["data.batch_size=100", "train.precision=fp16", "train.device=cpu", "optimizer.lr_factors={other: 2}"]
    diagnosis = diagnose(CONFIG, words)
    assert [(subject, finding.level) for subject, finding in diagnosis.findings] == [
        ("device", "warning"),
        ("stage", "error"),
        ("memory", "warning"),
    ]
    assert diagnosis.checked["step"] == "not tried, as there are errors"
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_split_does_not_hide_the_rest(tmp_path: Path) -> None:
    words = [*TINY_WORDS, f"data.train={indexed_shards(tmp_path / 'images', 12)}", f"run.dir={tmp_path / 'run'}"]
    diagnosis = diagnose(CONFIG, [*words, "data.batch_size=4"], world=8, machines=1)
    assert [(subject, finding.level) for subject, finding in diagnosis.findings] == [("processes", "error")]
    assert "fsdp" in diagnosis.checked["memory"]


def test_a_config_that_cannot_be_read_ends_the_checks(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path / "none.yaml", [])
    assert [subject for subject, _ in diagnosis.findings] == ["config"]
    assert [*diagnosis.checked] == ["libraries"]


@pytest.mark.parametrize(
    ("world", "machines", "gpus", "size"),
    [
        (None, None, 8, JobSize(1, 1)),
        (16, None, 8, JobSize(16, 8)),
        (16, None, 0, JobSize(16, 16)),
        (16, 3, 8, JobSize(16, 6)),
        (4, None, 8, JobSize(4, 4)),
    ],
)
def test_the_machines_of_a_rehearsed_job_are_as_many_as_its_gpus_need(
    monkeypatch: pytest.MonkeyPatch, world: int | None, machines: int | None, gpus: int, size: JobSize
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert checkup._job_size(world, machines, Communicator()) == size
