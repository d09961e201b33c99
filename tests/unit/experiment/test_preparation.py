"""A run as it starts: the stage and the trainer of a config, and the progress of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.preflight import open_data
from diffpipe.experiment.preparation import build_trainer, load_progress, prepare_stage, trained_already
from diffpipe.train.checkpoint import newest_valid
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards, saved_run
from tests.support.stage_cases import CASES


def experiment(home: Path, *words: str) -> Experiment:
    images = home.parent / "images"
    if not images.exists():
        indexed_shards(images, 12)
    words = ("data.batch_size=4", "data.test=null", f"run.dir={home}", f"data.train={images}", *words)
    return CASES["ddpm"].experiment(*words)


def test_a_fresh_run_has_all_that_its_config_leaves_open_and_nothing_is_written(
    tmp_path: Path, runtime: Runtime
) -> None:
    config = experiment(tmp_path / "run", "train.steps=3")
    shards, shape = open_data(config, 1)
    prepared = prepare_stage(config, shards, shape, None, runtime)
    assert prepared.experiment.data.order_version == VERSION
    assert (prepared.runs, prepared.validation) == ({}, None)
    trainer = build_trainer(prepared, shards, None, runtime)
    assert (trainer.step, trainer.last_step, trainer.samples_per_epoch) == (0, 3, 12)
    assert trained_already(config, trainer) is None
    trainer.step = 3
    assert (
        trained_already(config, trainer) == f"{config.run.dir}: trained to step 3 already; raise train.steps to go on"
    )
    assert not (tmp_path / "run").exists()


def test_imported_weights_are_loaded_without_the_state_of_an_optimizer(tmp_path: Path, runtime: Runtime) -> None:
    saved_run(tmp_path / "run", "data.labels=false", imported_from="elsewhere", steps=(2,))
    config = experiment(tmp_path / "run")
    shards, shape = open_data(config, 1)
    checkpoint, _ = newest_valid(tmp_path / "run" / "checkpoints", Communicator())
    assert checkpoint is not None
    trainer = build_trainer(
        prepare_stage(config, shards, shape._replace(classes=10), checkpoint, runtime), shards, checkpoint, runtime
    )
    load_progress(trainer, checkpoint)
    assert trainer.step == 2
    assert all(torch.all(p == 2) for p in trainer.nets["denoiser"].parameters())


def test_a_stage_that_does_not_fit_the_shards_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    config = experiment(tmp_path / "run", "eval.every=1")
    with pytest.raises(UserError, match=r"eval\.every needs images to compare with"):
        prepare_stage(config, *open_data(config, 1), None, runtime)
