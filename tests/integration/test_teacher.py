"""A few-step denoiser that starts from a trained DDPM, through the commands."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.commands import HOME, TINY_RUN, TINY_STAGE, refused, succeeds, tensors, train

STUDENT = HOME / "configs" / "fashion_mnist" / "adversarial.yaml"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "ddpm"
    train(run, "train.steps=2")
    return run


def words(run: Path, teacher: Path, *overrides: str) -> list[str]:
    tiny = [*TINY_STAGE["adversarial"], *TINY_RUN, f"stage.teacher={{run: {teacher}}}"]
    return ["train", str(STUDENT), f"run.dir={run}", *tiny, *overrides]


def test_it_starts_from_its_teachers_average_and_then_needs_it_no_more(teacher: Path, tmp_path: Path) -> None:
    copy, run = tmp_path / "teacher", tmp_path / "student"
    shutil.copytree(teacher, copy)
    succeeds(*words(run, copy, "train.steps=1", "optimizer.lr=1e-12"))
    theirs = tensors(copy / "checkpoints" / "step-00000002")
    ours = tensors(run / "checkpoints" / "step-00000001")
    taught = {
        name.removeprefix("ema.denoiser."): value for name, value in theirs.items() if name.startswith("ema.denoiser.")
    }
    for name, value in taught.items():
        np.testing.assert_allclose(ours[f"net.generator.{name}"], value, atol=1e-9)
    first = ours["net.discriminator.stem.weight"]
    np.testing.assert_allclose(first[:, :1], taught["stem.weight"], atol=1e-9)
    np.testing.assert_allclose(first[:, 1:], 0, atol=1e-9)

    manifest = copy / "checkpoints" / "step-00000002" / "manifest.json"
    pinned = yaml.safe_load((run / "config.yaml").read_text())["stage"]["teacher"]["sha256"]
    assert pinned == hashlib.sha256(manifest.read_bytes()).hexdigest()
    shutil.rmtree(copy)
    succeeds(*words(run, copy, "train.steps=2", "optimizer.lr=1e-12"))
    succeeds("sample", run, tmp_path / "samples", "--n", 2)


def test_a_teacher_that_does_not_fit_is_refused(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "student"
    line = refused(*words(run, tmp_path / "nowhere", "train.steps=1"))
    assert f"stage.teacher.run: {tmp_path}/nowhere: no such directory" in line
    line = refused(*words(run, teacher, "train.steps=1", "stage.network.blocks=2"))
    assert "was trained with another stage.network: make it" in line
    line = refused(*words(run, teacher, "train.steps=1", f"stage.teacher={{run: {teacher}, sha256: {'a' * 64}}}"))
    assert "this run needs the checkpoint whose manifest.json has sha256 aaaa" in line
    line = refused(*words(run, teacher, "train.steps=1", "data.resolution=32"))
    assert "trained on images of 1 × 28 × 28 in 10 classes, and these are of 1 × 32 × 32 in 10 classes" in line
    assert not run.exists() or not list(run.glob("checkpoints/step-*"))
