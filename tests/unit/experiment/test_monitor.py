"""The monitor's grids, validation losses and scores, with toy stages whose images are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpipe import plugins
from diffpipe.data.index import shard_set
from diffpipe.evaluation.image_grid import grid
from diffpipe.evaluation.validation import Validation
from diffpipe.experiment.monitor import Monitor
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.metrics import protocol
from diffpipe.resolution import square
from diffpipe.train.callbacks import Callback
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, Noise, indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import random_pixels


class Samples(Callback):
    def __init__(self) -> None:
        self.paths: list[Path] = []

    def on_samples(self, path: Path) -> None:
        self.paths.append(path)


def monitor(stage: Stage, home: Path, runtime: Runtime, *words: str, callbacks: Any = ()) -> Monitor:
    """A monitor at step 7 of a run in `home`, with 12 training and 12 held-out images."""
    images = indexed_shards(home / "images", 12)
    places = (f"run.dir={home}", f"data.train={images}", f"data.test={images}")
    experiment = CASES["ddpm"].experiment(*places, *words)
    trainer = Trainer(stage, runtime, TrainConfig(steps=9), OptimizerConfig(), EMAConfig(), seed=0, batch_size=4)
    trainer.step = 7
    validation = Validation.of(experiment, stage)
    shards, shape = shard_set.load(images), ImageShape(1, square(8), 3)
    return Monitor(experiment, runtime, shards, shape, stage, trainer, validation, callbacks)


def saved_grid(home: Path) -> np.ndarray:
    with Image.open(home / "samples" / "step-00000007.png") as image:
        return np.asarray(image)


def test_a_grid_of_samples_has_a_column_for_each_class_and_callbacks_hear_of_it(
    tmp_path: Path, runtime: Runtime
) -> None:
    samples = Samples()
    monitor(Noise(), tmp_path, runtime, "sample.n=6", callbacks=[samples]).draw()
    expected = (torch.arange(6) % 3).to(torch.uint8)[:, None, None, None].expand(6, 1, 8, 8)  # the label of each image
    assert np.array_equal(saved_grid(tmp_path), np.asarray(grid(expected.contiguous(), columns=3)))
    assert samples.paths == [tmp_path / "samples" / "step-00000007.png"]


def test_a_stage_that_only_reconstructs_draws_real_images_above_their_reconstructions(
    tmp_path: Path, runtime: Runtime
) -> None:
    monitor(Coder(), tmp_path, runtime, "sample.n=12").draw()
    real = torch.from_numpy(np.stack([random_pixels(i) for i in range(8)]))[:, None]
    rows = torch.cat([real[:3], 255 - real[:3], real[3:6], 255 - real[3:6]])
    assert np.array_equal(saved_grid(tmp_path), np.asarray(grid(rows, columns=3)))
    without_classes = monitor(Coder(), tmp_path, runtime, "sample.n=16")._replace(shape=ImageShape(1, square(8)))
    without_classes.draw()
    assert np.array_equal(saved_grid(tmp_path), np.asarray(grid(torch.cat([real, 255 - real]), columns=8)))


def test_validation_is_measured_and_printed(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    values = monitor(Noise(), tmp_path, runtime, "validate.every=1", "validate.n=12").validate()
    mean = np.mean([random_pixels(i).mean() / 255 for i in range(12)])
    assert values["validation_pixel"] == pytest.approx(mean, rel=1e-6)
    printed = capsys.readouterr()
    line = f"step 7: validation_loss {values['validation_loss']:.4f}, of the averaged weights"
    assert line in printed.out + printed.err


def test_a_score_is_written_with_the_averaged_weights_in_its_protocol(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = lambda images: images.float().mean((2, 3))  # noqa: E731
    monkeypatch.setitem(plugins._parts, "feature_networks", {"grey": network})
    scoring = monitor(Noise(), tmp_path, runtime, "eval.every=7", "eval.n=9", "eval.metrics=[fd_grey]")
    scoring.score()
    (path,) = (tmp_path / "scores").iterdir()
    assert path.name.startswith("train-step-00000007-n9-")
    result = protocol.read(path)
    # The images are of greys 0, 1, 2, …: the distance is that of two normal distributions in one dimension.
    greys, real = np.arange(9) % 3, np.array([random_pixels(i).mean() for i in range(12)])
    expected = (greys.mean() - real.mean()) ** 2 + (greys.std(ddof=1) - real.std(ddof=1)) ** 2
    assert result.scores["fd_grey"] == pytest.approx(3 * expected, rel=1e-3)  # on each of three equal channels
    assert (result.protocol["generated"]["step"], result.protocol["generated"]["weights"]) == (7, "ema")
    assert "note: fd_grey is of 9 images in 3 feature dimensions" in capsys.readouterr().err
    scoring.trainer.step = 14
    scoring.score()
    assert "note:" not in capsys.readouterr().err  # once in a run
    # The held-out images are the training images: a floor of these would be too low.
    assert (result.protocol["reference"]["n"], result.protocol["floor"]["n"]) == (12, [6, 6])
