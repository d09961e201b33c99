"""`diffpipe nll` through the real command: what it writes, and that processes do not change it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.metrics import protocol
from tests.support.commands import HOME, SHARDS, refused, succeeds, train

STEPS, N = 4, 70


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    train(home, "train.steps=2", "data.resolution=8")
    return home


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, Any]]]:
    """The command's output and files on one process and on two."""
    home, found = tmp_path_factory.mktemp("nll"), []
    for processes in (0, 2):
        out = home / f"{processes}.json"
        words = ["nll", run, SHARDS / "test", "--n", N, "--steps", STEPS, "--out", out]
        said = succeeds(*words, processes=processes)
        found.append((said, json.loads(out.read_text())))
        with Image.open(out.with_suffix(".png")) as plot:
            assert plot.width > plot.height > 400
    return found


def test_the_likelihood_does_not_depend_on_the_number_of_processes(results: list[tuple[str, dict[str, Any]]]) -> None:
    one, two = (result for _, result in results)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-9)
    assert two["protocol"] | {"date": ""} == one["protocol"] | {"date": ""}


def test_the_terms_add_up_and_the_protocol_says_how_they_were_made(
    run: Path, results: list[tuple[str, dict[str, Any]]]
) -> None:
    said, result = results[0]
    scores, told = result["scores"], result["protocol"]
    assert scores.keys() == {"nll", "nll_standard_error", "L_T", "L_t", "L_0"}
    assert scores["nll"] == pytest.approx(scores["L_T"] + scores["L_t"] + scores["L_0"], rel=1e-6)
    assert min(scores.values()) > 0
    assert 0 < scores["nll_standard_error"] < scores["nll"] / math.sqrt(N)
    assert f"nll  {scores['nll']:.3f} ± {scores['nll_standard_error']:.3f} bits/dim (bound; {N} images)" in said
    assert f"L_0  {scores['L_0']:.3f} ± " in said
    assert told["metrics"]["nll"] == {"unit": "bits/dim", "levels": 256, "resolution": 8, "channels": 1}
    model = told["model"]
    assert (model["stage"], model["kind"], model["seed"], model["precision"]) == ("ddpm", "bound", 0, "float32")
    assert (model["step"], model["weights"], model["sampler"]["vlb_steps"]) == (2, "ema", STEPS)
    assert told["reference"]["n"] == N
    assert len(told["reference"]["fingerprint"]) == 64
    assert protocol.parse(result, "score").scores == scores


def test_the_flows_likelihood_has_a_name_and_a_protocol_of_its_own(run: Path, tmp_path: Path) -> None:
    results = []
    for processes in (0, 2):
        out = tmp_path / f"{processes}.json"
        words = ["nll", run, SHARDS / "test", "--n", N, "--ode", "--solver", "heun", "--steps", 3, "--probes", 4]
        said = succeeds(*words, "--out", out, processes=processes)
        results.append(json.loads(out.read_text()))
        assert not out.with_suffix(".png").exists()
    one, two = results
    scores = one["scores"]
    assert two["scores"] == pytest.approx(scores, rel=1e-6)
    assert two["protocol"] | {"date": ""} == one["protocol"] | {"date": ""}
    terms = {f"nll_ode_{term}": scores[f"nll_ode_{term}"] for term in ("prior", "divergence", "dequantization", "L_0")}
    assert scores.keys() == {"nll_ode", "nll_ode_standard_error", "nll_ode_probe_error", *terms}
    assert scores["nll_ode"] == pytest.approx(sum(terms.values()), rel=1e-6)
    assert 0 < scores["nll_ode_probe_error"] < scores["nll_ode_standard_error"] < scores["nll_ode"]
    assert f"nll_ode  {scores['nll_ode']:.3f} ± " in said
    assert f"(estimate; {N} images; ± {scores['nll_ode_probe_error']:.4f} due to the probes)" in said
    about = one["protocol"]["metrics"]["nll_ode"]
    assert (about["solver"], about["steps"], about["probes"], about["unit"]) == ("heun", 3, 4, "bits/dim")
    assert one["protocol"]["model"]["kind"] == "estimate"


def test_a_bound_and_a_flows_likelihood_are_not_compared(
    run: Path, tmp_path: Path, results: list[tuple[str, dict[str, Any]]]
) -> None:
    out = tmp_path / "ode.json"
    succeeds("nll", run, SHARDS / "test", "--n", 4, "--ode", "--solver", "heun", "--steps", 1, "--out", out)
    with pytest.raises(UserError, match="share no metric"):
        protocol.require_alike(protocol.read(out), protocol.parse(results[0][1], "the bound"))


def test_what_has_no_likelihood_is_refused_in_one_line(tmp_path: Path) -> None:
    train(tmp_path / "gan", "train.steps=1", "data.resolution=8", config=HOME / "configs/fashion_mnist/gan.yaml")
    line = refused("nll", tmp_path / "gan", SHARDS / "test")
    assert "a run of stage.kind gan has no likelihood" in line
    assert line.endswith("give a run of another kind")


def test_images_without_labels_are_refused_where_the_run_is_class_conditional(tmp_path: Path, run: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / "images" / f"{i}.png")
    pack(FolderSource(tmp_path / "images"), tmp_path / "unlabelled")
    line = refused("nll", run, tmp_path / "unlabelled", "--n", 2)
    assert "unlabelled" in line
    assert "the run is class-conditional and some samples have no label; pack them with one" in line
