"""The numbers of a run's summary against closed forms, with toy stages whose images and scores are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.report import run_summary
from diffpipe.report.run_summary import (
    count_parameters,
    mean_likelihood,
    reconstruct,
    reconstruction_error,
    time_sampling,
    training_speed,
)
from diffpipe.resolution import square
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, Noise, indexed_shards, opened_run
from tests.support.stage_cases import CASES
from tests.support.tars import random_pixels
from tests.support.toy_stages import Duel, Toy

HOME = Path("runs/toy")


def test_parameters_are_counted_for_the_networks_that_generate_and_for_all() -> None:
    assert count_parameters(opened_run(Noise(), HOME)) == {"generating": 2, "all": 2}
    assert count_parameters(opened_run(Duel(), HOME)) == {"generating": None, "all": 4}
    gan = CASES["gan"].stage()
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in gan.networks().items()}
    expected = {"generating": sizes["generator"], "all": sizes["generator"] + sizes["discriminator"]}
    assert count_parameters(opened_run(gan, HOME)) == expected


def test_the_training_speed_is_the_median_of_the_lines_up_to_the_checkpoint_but_the_first(tmp_path: Path) -> None:
    run = opened_run(Toy(), tmp_path, step=10)
    assert training_speed(run) is None
    rates = {2: 1.0, 4: 40.0, 6: 10.0, 8: 20.0, 12: 9000.0}
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in rates.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, lines[0][:9]]))  # the last line is not complete
    assert training_speed(run) == {"images_per_second": 20.0, "seconds": run.checkpoint.state.position / 20.0}
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    assert training_speed(run) is None
    forged = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in enumerate([1, 0, -3, math.inf])]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*forged, ""]))
    assert training_speed(run) is None


def test_the_sampling_speed_is_that_of_whole_chunks_after_a_first(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.cumsum([0.0, 0.5, 0.0, 0.25, 0.0, 1.0, 0.0, 0.75]).tolist())  # seconds: 0.5, 0.25, 1, then 0.75
    monkeypatch.setattr(run_summary.time, "perf_counter", lambda: next(clock))
    run = opened_run(Noise(), HOME)
    images, speed = time_sampling(run, runtime, seed=3)
    assert images.shape == (CHUNK, 1, 8, 8)
    assert speed == {"images_per_second": CHUNK / 0.625, "evaluations": 3, "timed_chunks": 4}


def test_the_mean_likelihood_has_its_standard_error_and_is_refused_for_an_error(
    tmp_path: Path, runtime: Runtime
) -> None:
    shards = indexed_shards(tmp_path, 7, 5)
    means = np.array([random_pixels(i).mean() for i in range(12)])
    result = mean_likelihood(opened_run(Noise("bound"), HOME), shards, 12, 0, runtime)
    assert result["value"] == pytest.approx(means.mean(), rel=1e-6)
    assert result["standard_error"] == pytest.approx(means.std(ddof=1) / 12**0.5, rel=1e-6)
    assert (result["n"], result["unit"], result["kind"]) == (12, "bits/dim", "bound")
    for stage in (Coder(), Noise("error")):
        with pytest.raises(UserError, match="has an error and no likelihood"):
            mean_likelihood(opened_run(stage, HOME), shards, 12, 0, runtime)


def test_the_reconstruction_error_is_the_mean_square_in_units_of_half_the_range(
    tmp_path: Path, runtime: Runtime
) -> None:
    run, images = opened_run(Coder(), HOME), ShardImages(shard_set.load(indexed_shards(tmp_path, 60)), 1, square(8))
    x = np.stack([random_pixels(i) for i in range(60)]) / 127.5 - 1
    error = reconstruction_error(run, images, 0, runtime)
    assert error["value"] == pytest.approx(np.mean((2 * x) ** 2), rel=1e-6)  # the negative of x is 2 x away
    assert error["n"] == 60
    assert torch.equal(reconstruct(run, images.images(range(2)), range(2), 0, runtime), 255 - images.images(range(2)))
    with pytest.raises(UserError, match=r"stage\.kind ddpm reconstructs no images"):
        reconstruct(opened_run(Toy(), HOME), images.images(range(2)), range(2), 0, runtime)
