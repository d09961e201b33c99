"""Bad samples: they change no weight, the others weigh as without them, and their number is limited."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffpipe.interfaces import Batch, Stage
from diffpipe.train.bad_samples import BadSamplesError
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.operator_counts import OperatorCounts
from tests.support.toy_stages import Duel, Toy, batch


def trainer(runtime: Runtime, stage: Stage, batch_size: int = 8, max_bad_samples: int = 0, **config: Any) -> Trainer:
    train = TrainConfig.model_validate({"steps": 6, "log_every": 2, **config})
    optimizer = OptimizerConfig(lr=0.01, warmup=0)
    return Trainer(
        stage, runtime, train, optimizer, EMAConfig(), seed=0, batch_size=batch_size, max_bad_samples=max_bad_samples
    )


def batch_with_bad(positions: Sequence[int], bad: Sequence[int]) -> Batch:
    """The loader's batch of these positions, some of them bad."""
    good = batch(positions)
    valid = torch.tensor([position not in bad for position in positions])
    images = good.images * valid[:, None, None, None]
    errors = [f"shard: key{position}: no image" for position in positions if position in bad]
    return good._replace(images=images, valid=valid, errors=errors)


def stream(bad: Sequence[int], start: int = 0) -> Iterator[Batch]:
    return (batch_with_bad(range(8 * i, 8 * i + 8), bad) for i in itertools.count(start))


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in t.state().items()}


@pytest.mark.parametrize("stage", [Toy, Duel])
@pytest.mark.parametrize("size", [7, 8, 12])
def test_where_all_are_valid_every_bit_is_as_without_the_option(runtime: Runtime, stage: type[Toy], size: int) -> None:
    without, with_option = trainer(runtime, stage(), size), trainer(runtime, stage(), size, max_bad_samples=1)
    for i in range(5):
        parts = range(size * i, size * i + 3), range(size * i + 3, size * i + size)
        without.train_step([batch(part) for part in parts])
        with_option.train_step([batch_with_bad(part, []) for part in parts])
    now = weights(with_option)
    for name, tensor in weights(without).items():
        assert torch.equal(tensor, now[name])


@pytest.mark.parametrize("bad", [[0], [1, 2, 5], [0, 1, 2]])
def test_the_step_is_that_of_the_valid_samples_alone(runtime: Runtime, bad: list[int]) -> None:
    good = [position for position in range(8) if position not in bad]
    alone, among = trainer(runtime, Toy(), len(good)), trainer(runtime, Toy(), max_bad_samples=9)
    alone.train_step([batch(good)])
    among.train_step([batch_with_bad(range(3), bad), batch_with_bad(range(3, 8), bad)])
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(among.state()[name], tensor, rtol=1e-6, atol=1e-8)
    expected, actual = alone.log_values(), among.log_values()
    for key in ("loss", "pixel", "grad_norm"):
        assert actual[key] == pytest.approx(expected[key], rel=1e-6), key


class NaNOfBlack(Toy):
    """Its loss is NaN for a black image."""

    def loss(self, phase, nets, batch, rng):
        loss = super().loss(phase, nets, batch, rng)
        black = (batch.images == 0).all(dim=(1, 2, 3))
        return dataclasses.replace(loss, per_sample=loss.per_sample.masked_fill(black, torch.nan))


def test_a_nan_loss_of_a_bad_sample_does_no_harm(runtime: Runtime, tmp_path: Path) -> None:
    nan, plain = trainer(runtime, NaNOfBlack(), max_bad_samples=1), trainer(runtime, Toy(), max_bad_samples=1)
    for t in (nan, plain):
        (tmp_path / type(t.stage).__name__).mkdir()
        t.run(stream([19], start=1), [], tmp_path / type(t.stage).__name__)
    for name, tensor in weights(plain).items():
        assert torch.equal(nan.state()[name], tensor)
    assert nan.skipped == 0


def test_a_step_of_bad_samples_only_has_no_gradient(runtime: Runtime) -> None:
    t = trainer(runtime, Toy(), max_bad_samples=9)
    before = weights(t)
    t.train_step([batch_with_bad(range(8), range(8))])
    assert t.step == 1
    assert t.log_values()["grad_norm"] == 0
    assert torch.equal(weights(t)["net.point.weight"], before["net.point.weight"])


def test_counting_the_valid_samples_does_not_wait_for_the_device(runtime: Runtime) -> None:
    t = trainer(runtime, Duel(), max_bad_samples=1)
    micro = [batch_with_bad(range(4), [2]), batch_with_bad(range(4, 8), [])]
    for _ in range(2):
        t.train_step(micro)
    with OperatorCounts() as calls:
        t.train_step(micro)
    assert calls.counts["_fused_adamw_"] > 0
    assert calls.counts["_local_scalar_dense"] == 0


def test_each_is_reported_once_and_counted_once_however_often_it_returns(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t = trainer(runtime, Toy(), max_bad_samples=2)
    t.run((batch_with_bad(range(8), [3] if i < 4 else [3, 5]) for i in itertools.count()), [], tmp_path)
    stderr = capsys.readouterr().err
    assert stderr.count("warning: step 0, rank 0: shard: key3: no image; the sample is left out") == 1
    assert stderr.count("warning: step 4, rank 0: shard: key5: no image") == 1
    assert stderr.count("warning") == 2
    assert t.bad.known == ["shard: key3: no image", "shard: key5: no image"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["bad"] for line in lines] == [1, 1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_a_run_ends_above_the_limit_which_holds_across_resumes(runtime: Runtime, tmp_path: Path) -> None:
    message = (
        r"2 samples are bad and data.max_bad_samples is 1: shard: key19: no image; shard: key40: no image\. Replace"
    )
    t = trainer(runtime, Toy(), max_bad_samples=1)
    with pytest.raises(BadSamplesError, match=message):
        t.run(stream([19, 40]), [], tmp_path)
    assert t.step == 6
    resumed = trainer(runtime, Toy(), max_bad_samples=1)
    resumed.step, resumed.bad.known = 4, ["shard: key19: no image"]
    with pytest.raises(BadSamplesError, match=message):
        resumed.run(stream([19, 40], start=4), [], tmp_path)
    enough = trainer(runtime, Toy(), max_bad_samples=2)
    enough.step, enough.bad.known = 4, ["shard: key19: no image"]
    enough.run(stream([19, 40], start=4), [], tmp_path)
    assert len(enough.bad.known) == 2


def test_no_more_than_eight_are_named(runtime: Runtime, tmp_path: Path) -> None:
    t = trainer(runtime, Toy(), max_bad_samples=3)
    with pytest.raises(BadSamplesError, match=r"11 samples are bad.*key16: no image; .*; 3 more\. Replace"):
        t.run(stream(range(11, 22), start=1), [], tmp_path)
