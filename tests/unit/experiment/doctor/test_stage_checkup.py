"""The stage's checks go on where one of them fails; tests/unit/cli/test_doctor.py plants troubles for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.experiment.doctor.findings import Diagnosis
from diffpipe.experiment.doctor.stage_checkup import StageCheckup
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.resources import JobSize
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES

WORDS = ("data.batch_size=4", "data.test=null")


def checked(tmp_path: Path, runtime: Runtime, *words: str, opened: bool = True, no_device: bool = False) -> Diagnosis:
    images = indexed_shards(tmp_path / "images", 12)
    experiment = CASES["ddpm"].experiment(*WORDS, f"run.dir={tmp_path / 'run'}", f"data.train={images}", *words)
    diagnosis = Diagnosis()
    checkup = StageCheckup(diagnosis, experiment, JobSize(1, 1), runtime, rehearsed=True, no_device=no_device)
    checkup.check(open_data(experiment, 1) if opened else None, None)
    return diagnosis


def test_a_stage_that_does_not_fit_is_checked_all_the_same(tmp_path: Path, runtime: Runtime) -> None:
    diagnosis = checked(tmp_path, runtime, "eval.reconstruction=4", "optimizer.lr_factors={other: 2}")
    assert [finding.message.split()[0] for _, finding in diagnosis.findings] == [
        "eval.reconstruction",
        "optimizer.lr_factors",
    ]
    assert [*diagnosis.checked] == ["memory", "disk"]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ((), []),
        (("stage.codec={kind: vae, run: no/codec}", "run.init=no/run"), ["stage.codec.run:", "run.init:"]),
        (("eval.every=1", "validate.every=1"), ["eval.every", "validate.every"]),
    ],
)
def test_shards_that_cannot_be_opened_do_not_hide_the_rest(
    tmp_path: Path, runtime: Runtime, words: tuple[str, ...], keys: list[str]
) -> None:
    diagnosis = checked(tmp_path, runtime, *words, opened=False)
    assert [finding.message.split()[0] for _, finding in diagnosis.findings] == keys
    assert "not built" in diagnosis.checked["stage"]


def test_the_memory_of_another_device_is_not_looked_at(tmp_path: Path, runtime: Runtime) -> None:
    assert [*checked(tmp_path, runtime, no_device=True).checked] == ["disk"]
