"""Held-out losses of toy stages: means over the images, phase by phase, without bad samples; and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from diffpipe.evaluation.validation import Validation
from diffpipe.interfaces import Batch, Loss, Phase, Stage
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import png, random_pixels, write_tar
from tests.support.toy_stages import Duel, Toy

N = 60  # a whole chunk and a part of one
PIXELS = np.stack([random_pixels(i) for i in range(N)]).mean((1, 2)) / 255


def opened(stage: Stage, home: Path, *words: str) -> Validation | None:
    return Validation.of(CASES["ddpm"].experiment(f"run.dir={home}", "validate.every=1", *words), stage)


def test_a_loss_is_the_mean_over_all_held_out_images_at_any_step(tmp_path: Path, runtime: Runtime) -> None:
    validation = opened(Toy(), tmp_path, f"data.test={indexed_shards(tmp_path / 'test', N)}", f"validate.n={N}")
    assert validation is not None
    nets = Toy().networks()
    nets["point"].load_state_dict({"weight": torch.zeros(1, 1), "bias": torch.tensor([100.0])})
    values = validation.measure(nets, 0, runtime)
    assert values.keys() == {"validation_loss", "validation_pixel"}
    assert values["validation_pixel"] == pytest.approx(PIXELS.mean(), rel=1e-6)
    # The mean of (100 - pixel - noise)^2: the noise's own mean, of 60 numbers with deviation 0.1, is within 0.05 of 0.
    assert values["validation_loss"] == pytest.approx(np.square(100 - PIXELS).mean(), abs=10)
    assert validation.measure(nets, 5, runtime) == values
    assert validation.about().n == N
    assert validation.about().fingerprint == validation.dataset.reader.shard_set.fingerprint


def test_a_metric_is_the_mean_over_the_samples_that_it_is_about(tmp_path: Path, runtime: Runtime) -> None:
    class Bright(Toy):
        def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
            loss = super().loss(phase, nets, batch, rng)
            pixel = loss.metrics["pixel"]
            nothing = torch.full_like(pixel, torch.nan)
            return Loss(loss.per_sample, {"bright": pixel.where(pixel > 0.5, nothing), "nothing": nothing})

    shards = indexed_shards(tmp_path / "test", N)
    validation = opened(Bright(), tmp_path, f"data.test={shards}", f"validate.n={N}")
    assert validation is not None
    values = validation.measure(Bright().networks(), 0, runtime)
    assert 0 < (PIXELS > 0.5).sum() < N
    assert values["validation_bright"] == pytest.approx(PIXELS[PIXELS > 0.5].mean(), rel=1e-6)
    assert np.isnan(values["validation_nothing"])
    assert np.isfinite(values["validation_loss"])


def test_each_due_phase_has_its_loss_and_the_total_is_their_sum(tmp_path: Path, runtime: Runtime) -> None:
    validation = opened(Duel(), tmp_path, f"data.test={indexed_shards(tmp_path / 'test', 8)}", "validate.n=8")
    assert validation is not None
    nets = Duel().networks()
    before, after = validation.measure(nets, 0, runtime), validation.measure(nets, 1, runtime)
    assert before.keys() == {"a/validation_loss", "validation_loss"}  # the second phase starts at step 1
    assert after.keys() == {"a/validation_loss", "b/validation_loss", "validation_loss"}
    assert after["a/validation_loss"] == after["b/validation_loss"] == before["validation_loss"]
    assert after["validation_loss"] == 2 * before["validation_loss"]


def test_a_sample_that_cannot_be_read_counts_in_no_mean(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test").mkdir()
    members = {f"{i}.{kind}": data for i in range(6) for kind, data in (("png", png(random_pixels(i))), ("cls", b"1"))}
    write_tar(tmp_path / "test" / "0.tar", members | {"3.png": b"no image"})
    write_index(tmp_path / "test")
    words = (f"data.test={tmp_path / 'test'}", "validate.n=6", "data.max_bad_samples=1")
    validation = opened(Toy(), tmp_path, *words)
    assert validation is not None
    values = validation.measure(Toy().networks(), 0, runtime)
    assert values["validation_pixel"] == pytest.approx(np.delete(PIXELS[:6], 3).mean(), rel=1e-6)
    printed = capsys.readouterr()
    assert "warning: 1 of 6 held-out samples are skipped: " in printed.out + printed.err


def test_it_needs_enough_held_out_images_and_is_off_unless_asked_for(tmp_path: Path) -> None:
    images = f"data.test={indexed_shards(tmp_path / 'test', 8)}"
    assert opened(Toy(), tmp_path, images, "validate.every=0") is None
    with pytest.raises(UserError, match=r"set data\.test to held-out shards"):
        opened(Toy(), tmp_path, "data.test=null")
    with pytest.raises(UserError, match=r"validate\.n is 9, and data\.test .* holds 8 samples"):
        opened(Toy(), tmp_path, images, "validate.n=9")
