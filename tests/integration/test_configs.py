"""Every config in configs/ is parsed as it is, then built tiny and trained two steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffpipe.cli.experiment import Experiment
from diffpipe.config import load_config
from diffpipe.stages.codec import VAECodecConfig
from diffpipe.stages.ddpm import DDPMConfig
from tests.integration.commands import HOME, SHARDS, metrics, train

CONFIGS = sorted((HOME / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(HOME / "configs")))
def test_it_trains(path: Path, tmp_path: Path) -> None:
    experiment = load_config(Experiment, path)
    assert experiment.train.steps >= 100
    shutil.copytree(SHARDS / "test", tmp_path / "shards")
    small = ["data.resolution=8", f"data.train={tmp_path}/shards", "data.workers=0", "train.steps=2"]
    if isinstance(experiment.stage, DDPMConfig) and isinstance(experiment.stage.codec, VAECodecConfig):
        train(tmp_path / "vae", *small, config=trained_by(experiment.stage.codec.run))
        small.append(f"stage.codec.run={tmp_path}/vae")
    train(tmp_path / "run", *small, config=path)
    assert sorted(metrics(tmp_path / "run")) == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def trained_by(run: str) -> Path:
    """The config whose run another config takes its codec from."""
    return next(path for path in CONFIGS if load_config(Experiment, path).run.dir == run)
