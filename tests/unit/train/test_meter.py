"""The meter: means over samples and updates, without bad and non-finite ones, also over several ranks."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from diffpipe.interfaces import Batch, Loss
from diffpipe.train.meter import Meter
from diffpipe.train.nonfinite import NonFiniteUpdate
from diffpipe.train.runtime import Runtime
from tests.support.operator_counts import OperatorCounts
from tests.support.thread_ranks import on_ranks
from tests.support.toy_stages import batch


def some(*positions: int, valid: list[bool] | None = None) -> Batch:
    return batch(positions)._replace(valid=None if valid is None else torch.tensor(valid))


def losses(*values: float) -> Loss:
    per_sample = torch.tensor(values)
    return Loss(per_sample, {"twice": 2 * per_sample})


def test_means_are_over_samples_and_not_over_batches(runtime: Runtime) -> None:
    meter = Meter()
    meter.add_loss(0, "", some(0, 1, 2), losses(1.0, 2.0, 3.0))
    meter.add_loss(0, "", some(3), losses(10.0))
    for norm in (3.0, 5.0):
        meter.add_norm(0, "", torch.tensor(norm))
    means, seconds = meter.means(runtime)
    assert means == {"loss": 4.0, "twice": 8.0, "grad_norm": 4.0}
    assert seconds > 0


def test_bad_samples_and_nonfinite_values_are_left_out(runtime: Runtime) -> None:
    meter = Meter()
    meter.add_loss(0, "a/", some(0, 1, 2, valid=[True, False, True]), losses(1.0, 100.0, 3.0))
    meter.add_loss(1, "a/", some(3, 4), losses(5.0, float("nan")))
    meter.add_norm(0, "a/", torch.tensor(2.0))
    meter.add_norm(1, "a/", torch.tensor(float("inf")))
    assert meter.means(runtime)[0] == {"a/loss": 3.0, "a/twice": 6.0, "a/grad_norm": 2.0}


def test_a_nonfinite_loss_names_its_samples_and_a_gradient_all_of_the_step(runtime: Runtime) -> None:
    meter = Meter()
    meter.add_loss(0, "", some(0, 1, valid=[False, True]), losses(float("nan"), 1.0))  # a bad sample's loss is no error
    meter.add_norm(0, "", torch.tensor(float("inf")))
    meter.add_loss(1, "", some(2, 3), losses(1.0, float("inf")))
    meter.add_norm(1, "", torch.tensor(float("nan")))
    gradient, loss = meter.nonfinite_updates(runtime)
    assert gradient == NonFiniteUpdate(0, "", "gradient", 0, ("key0", "key1"))
    assert loss == NonFiniteUpdate(1, "", "loss", 0, ("key3",))
    half = dataclasses.replace(runtime, dtype=torch.float16)  # its scaler handles gradients
    assert meter.nonfinite_updates(half) == [loss]
    meter.restart(2)
    assert meter.first == 2
    meter.add_loss(2, "", some(4), losses(1.0))
    assert meter.nonfinite_updates(runtime) == []


def test_all_ranks_have_one_list_of_updates() -> None:
    def updates(runtime: Runtime) -> list[NonFiniteUpdate]:
        meter = Meter()
        meter.add_loss(5, "", some(runtime.rank), losses(float("nan") if runtime.rank else 1.0))
        meter.add_norm(5, "", torch.tensor(float("nan")))
        return meter.nonfinite_updates(runtime)

    assert on_ranks(3, updates) == [[NonFiniteUpdate(5, "", "loss", rank, (f"key{rank}",)) for rank in (1, 2)]] * 3


def test_the_time_of_hooks_is_left_out(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("diffpipe.train.meter.time.perf_counter", lambda: clock[0])
    meter = Meter()
    meter.add_loss(0, "", some(0), losses(1.0))
    clock[0] = 100.0
    meter.skip_time()
    clock[0] = 103.0
    assert meter.means(runtime)[1] == 3.0


def test_many_quantities_cost_about_as_much_as_one_and_none_waits_for_the_device() -> None:
    def operators(names: int) -> Counter[str]:
        loss = Loss(torch.ones(3), {f"q{i}": torch.ones(3) for i in range(names)})
        meter = Meter()
        with OperatorCounts() as counted:
            meter.add_loss(0, "", some(0, 1, 2), loss)
            meter.add_loss(1, "", some(0, 1, 2), loss)
        return counted.counts

    many = operators(8)
    assert many["_local_scalar_dense"] == many["nonzero"] == 0
    del many["detach"]
    one = operators(0)
    del one["detach"]
    assert many == one


def test_quantities_that_some_steps_lack_are_means_over_those_that_have_them(runtime: Runtime) -> None:
    meter = Meter()
    meter.add_loss(0, "", some(0, 1), losses(1.0, 2.0))
    meter.add_loss(1, "", some(0, 1), Loss(torch.tensor([3.0, 6.0])))
    assert meter.means(runtime)[0] == {"loss": 3.0, "twice": 3.0}
