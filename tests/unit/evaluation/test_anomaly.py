"""Anomaly detection by the mean pixel: sets that it separates, sets that it ranks wrongly, and ones that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from diffpipe.evaluation.anomaly import detect_anomalies
from diffpipe.train.runtime import Runtime
from tests.support.runs import Coder, Noise, indexed_shards, opened_run
from tests.support.tars import png, random_pixels, write_tar

UNCONDITIONAL = "latent_vae"


def shards(folder: Path, images: Sequence[np.ndarray]) -> str:
    folder.mkdir()
    write_tar(folder / "0.tar", {f"{i:03d}.png": png(image) for i, image in enumerate(images)})
    write_index(folder)
    return str(folder)


def test_bright_images_are_found_among_dark_ones(tmp_path: Path, runtime: Runtime) -> None:
    dark = [random_pixels(i) // 4 for i in range(6)]
    normal, abnormal = shards(tmp_path / "a", dark), shards(tmp_path / "b", [255 - image for image in dark])
    run = opened_run(Coder("error"), tmp_path, case=UNCONDITIONAL)
    result = detect_anomalies(run, normal, abnormal, runtime, n=100, seed=0)
    assert sorted(result.scores["normal"]["error"]) == pytest.approx(sorted(image.mean() for image in dark))
    tree = result.tree()
    figures = {name: figure["value"] for name, figure in tree["detection"]["error"].items()}
    assert figures == pytest.approx({"auroc": 1, "average_precision": 1, "fpr95": 0})
    assert (tree["unit"], tree["protocol"]["normal"]["n"], tree["protocol"]["abnormal"]["n"]) == ("mse", 6, 6)
    assert tree["scores"] == pytest.approx({"error_auroc": 1, "error_average_precision": 1, "error_fpr95": 0})
    assert (tree["floor"], result.n) == ({}, 12)
    assert tree["protocol"]["normal"]["size"] == [8, 8]
    assert len(result.table().splitlines()) == 2  # the title and the error: the other scores are of likelihoods


def test_a_likelihood_that_prefers_simple_images_is_corrected_by_their_complexity(
    tmp_path: Path, runtime: Runtime
) -> None:
    noise, flat = [random_pixels(i) for i in range(8)], [np.full((8, 8), 20 + i, np.uint8) for i in range(8)]
    normal, abnormal, trained = (shards(tmp_path / name, s) for name, s in (("a", noise), ("b", flat), ("c", noise)))
    run = opened_run(Coder(), tmp_path, f"data.train={trained}", case=UNCONDITIONAL)
    result = detect_anomalies(run, normal, abnormal, runtime, training=trained, n=8, seed=0)
    assert result.detections["exact"].auroc.value == 0
    assert "ranks the abnormal images as more normal" in result.table()
    assert result.detections["typicality"].auroc.value == 1
    for name, images in (("normal", noise), ("abnormal", flat)):
        scores, pixels = result.scores[name], result.pixels[name].numpy()
        assert sorted(pixels.mean((1, 2, 3))) == pytest.approx(sorted(image.mean() for image in images))
        assert scores["exact"] == pytest.approx(pixels.mean((1, 2, 3)))
        assert scores["typicality"] == pytest.approx(np.abs(scores["exact"] - np.mean(noise)))
    bits = {name: scores["exact"] - scores["complexity"] for name, scores in result.scores.items()}
    assert bits["normal"].min() > 7  # of the 8 that a uniform byte has
    assert bits["abnormal"].max() < 1


def test_runs_and_images_that_do_not_fit_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    small, fitting = shards(tmp_path / "small", [random_pixels(0, (4, 4))] * 2), indexed_shards(tmp_path / "fitting", 2)
    run = opened_run(Coder(), tmp_path, case=UNCONDITIONAL)
    with pytest.raises(UserError, match=r"^abnormal: .* holds images of 4x4 and the run was trained at 8x8"):
        detect_anomalies(run, fitting, small, runtime, n=2, seed=0)
    with pytest.raises(UserError, match=r"give a run trained with stage\.conditional=false"):
        detect_anomalies(opened_run(Noise(), tmp_path), fitting, fitting, runtime, n=2, seed=0)


def test_the_shards_that_a_run_names_are_not_read(tmp_path: Path, runtime: Runtime) -> None:
    images = shards(tmp_path / "a", [random_pixels(i) for i in range(4)])
    run = opened_run(Coder(), tmp_path, f"data.train={tmp_path}/absent", case=UNCONDITIONAL)
    result = detect_anomalies(run, images, images, runtime, n=4, seed=0)
    assert list(result.detections) == ["exact", "complexity"]
    assert "no typicality: " in result.table()
    assert "give the training SHARDS" in result.table()
