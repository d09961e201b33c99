"""Validation through the real command: the same number on any number of processes, and that of the stage's own loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpipe.data import images, labels, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.order import Order
from diffpipe.evaluation.validation import SEED
from diffpipe.experiment.run import open_run
from diffpipe.interfaces import Batch
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.support.commands import CONFIG, HOME, SHARDS, TINY, metrics, refused, train
from tests.support.tars import png, random_pixels, write_tar

N = 70
QUICK = ["data.resolution=8", "data.workers=0", "data.flip=true", "train.precision=fp32", "validate.every=2"]
QUICK += [f"validate.n={N}", "checkpoint.async=false"]
# Nothing moves, so that whoever trains has the same weights.
FROZEN = ["optimizer.lr=1e-30", "ema.decay=0.9999999999999999", "ema.power=30"]


def validated(run: Path) -> dict[int, dict[str, float]]:
    """By step, what was measured on held-out images."""
    found = {
        step: {name: value for name, value in line.items() if "validation" in name}
        for step, line in metrics(run).items()
    }
    return {step: values for step, values in found.items() if values}


def test_it_is_the_same_on_any_number_of_processes_and_at_any_step(tmp_path: Path) -> None:
    said = train(tmp_path / "1", *QUICK, *FROZEN, "train.steps=3")
    train(tmp_path / "2", *QUICK, *FROZEN, "train.steps=3", "data.batch_size=6", processes=2)
    train(tmp_path / "fsdp", *QUICK, *FROZEN, "train.steps=2", "train.parallel=fsdp", processes=2)
    alone = validated(tmp_path / "1")
    assert sorted(alone) == [2, 3]  # every second step, and the last
    assert alone[2] == alone[3]
    assert validated(tmp_path / "2") == alone
    assert validated(tmp_path / "fsdp")[2] == alone[2]
    assert f"step 3: validation_loss {alone[3]['validation_loss']:.4f}, of the averaged weights\n" in said


def test_it_is_the_loss_of_the_averaged_weights_at_fixed_images_and_noise(tmp_path: Path) -> None:
    train(tmp_path, *QUICK, "train.steps=5", "stage.network.dropout=0.5")
    shards = load(str(SHARDS / "test"))
    shard, within = Order(SEED, shards.counts).at(np.arange(N))
    chosen = within + np.cumsum([0, *shards.counts])[shard]
    assert len(set(chosen.tolist())) == N
    positions = torch.arange(N)
    batch = Batch(images(shards, chosen, square(8), 1), labels(shards, chosen), positions, [""] * N)
    with Runtime.start("fp32", "cpu") as runtime, torch.no_grad():
        run = open_run(tmp_path, [], runtime)
        (phase,) = run.stage.phases()
        expected = run.stage.loss(phase, run.nets, batch, KeyedRNG(SEED, positions))
    found = validated(tmp_path)
    assert found[5]["validation_loss"] == pytest.approx(expected.per_sample.double().mean().item(), rel=1e-5)
    assert found[5].keys() == {"validation_loss", *(f"validation_{name}" for name in expected.metrics)}
    assert found[2]["validation_loss"] != found[4]["validation_loss"]


def test_a_game_is_validated_phase_by_phase_with_its_penalties(tmp_path: Path) -> None:
    config = HOME / "configs" / "fashion_mnist" / "gan.yaml"
    train(tmp_path, *QUICK, "train.steps=2", "data.batch_size=4", config=config)
    values = validated(tmp_path)[2]
    assert values["penalty/validation_penalty"] > 0
    losses = [values[f"{phase}/validation_loss"] for phase in ("discriminator", "penalty", "generator")]
    assert values["validation_loss"] == pytest.approx(sum(losses))
    assert all(math.isfinite(value) for value in values.values())


def test_a_sample_that_cannot_be_read_is_skipped_with_a_warning(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": data for i in range(6) for kind, data in (("png", png(random_pixels(i))), ("cls", b"1"))}
    words = [*QUICK, *FROZEN, "train.steps=2", "data.max_bad_samples=1", "validate.n=6"]
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", members | {"3.png": b"no image"})
    write_index(tmp_path / "test")
    said = train(tmp_path / "run", *words, f"data.test={tmp_path}/test")
    assert "warning: 1 of 6 held-out samples are skipped: " in said
    other = "warning: earlier validation losses are of other images"
    assert other not in train(tmp_path / "run", *words, f"data.test={tmp_path}/test", "train.steps=3")
    assert other in train(tmp_path / "run", *words, "train.steps=4")
    assert "0.tar: 3" in said
    assert validated(tmp_path / "run")[2]["validation_loss"] > 0


def test_what_cannot_be_validated_is_refused_before_a_step(tmp_path: Path) -> None:
    words = ["train", CONFIG, f"run.dir={tmp_path}", *TINY, *QUICK, "train.steps=2"]
    assert "set data.test to held-out shards" in refused(*words, "data.test=null")
    assert "validate.n is 3000, and data.test" in refused(*words, "validate.n=3000")
    assert "did you mean validate.every?" in refused(*words, "validate.evry=3")
