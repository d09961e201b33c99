"""Sampling, scoring and exporting through the real commands: what they write; that processes change no score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.commands import HOME, SHARDS, diffpipe, succeeds, tensors, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    train(home, "train.steps=3", "sample.every=3", "sample.n=12")
    return home


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A folder of 120 images that are noise to the network."""
    home = tmp_path_factory.mktemp("reference")
    succeeds("sample", run, home, "--n", 120, "--seed", 77, "--raw")
    return home


def test_each_image_is_a_file_by_its_index_and_the_grid_shows_them(run: Path, tmp_path: Path) -> None:
    succeeds("sample", run, tmp_path, "--n", 110, "--steps", 4, "--sampler", "ancestral")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(110)), "grid.png", "samples.json"]
    with Image.open(tmp_path / "000003.png") as image:
        assert (image.size, image.mode) == ((28, 28), "L")


def test_seed_and_label_choose_the_image(run: Path, tmp_path: Path) -> None:
    def first(name: str, *words: object) -> bytes:
        succeeds("sample", run, tmp_path / name, "--n", 1, *words)
        return (tmp_path / name / "000000.png").read_bytes()

    plain = first("plain")
    assert first("again") == plain
    assert first("zero", "--label", 0) == plain  # image 0 is of class 0
    assert first("seed", "--seed", 1) != plain


def test_the_chain_is_drawn_alike_on_one_process_and_on_two(run: Path, tmp_path: Path) -> None:
    for processes in (0, 2):
        words = ["--n", 2, "--steps", 20, "--sampler", "unipc", "--trajectory"]
        line = succeeds("sample", run, tmp_path / f"{processes}", *words, processes=processes)
        assert f"2 images of step 3, ema weights: {tmp_path}/{processes}/grid.png and {tmp_path}" in line
    pictures = [tmp_path / f"{processes}" / "trajectory.png" for processes in (0, 2)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    with Image.open(pictures[0]) as picture:
        assert picture.width > 11 * (3 * 28 + 6)


def test_scores_do_not_depend_on_the_number_of_processes(run: Path, reference: Path, tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        words = ["--reference", reference, "--floor", "split", "--n", 60, "--out", out]
        succeeds("eval", run, *words, processes=processes)
        results.append(json.loads(out.read_text()))
    for name in ("fd_efficientnet_lite0", "kid_efficientnet_lite0"):
        assert results[0]["scores"][name] == pytest.approx(results[1]["scores"][name], rel=1e-9)
        assert results[0]["floor"][name] == pytest.approx(results[1]["floor"][name], rel=1e-9)
    generated = results[0]["protocol"]["generated"]
    assert generated["n"] == 60
    assert generated["weights"] == "ema"
    assert generated["sampler"]["steps"] == 3
    assert {"metrics", "reference", "floor", "versions"} <= results[0]["protocol"].keys()
    assert results[0]["protocol"]["generated"] == results[1]["protocol"]["generated"]


def test_folders_and_shards_are_scored_too_and_the_score_of_a_set_against_itself_is_zero(reference: Path) -> None:
    said = succeeds("eval", reference, "--reference", reference, "--metrics", "fd_efficientnet_lite0")
    score = float(said.split("fd_efficientnet_lite0")[1].split()[0])
    assert score == pytest.approx(0, abs=1e-3)


def test_training_scores_and_draws_along_the_way(tmp_path: Path, run: Path) -> None:
    with Image.open(run / "samples" / "step-00000003.png") as grid:
        assert grid.size == (10 * 30 * 2, 2 * 30 * 2)  # 12 images in columns of 10 classes, framed and doubled
    train(tmp_path, "train.steps=2", "eval.every=2", "eval.n=10", f"data.test={SHARDS}/test/test-000001.tar")
    (score,) = (tmp_path / "scores").iterdir()
    assert json.loads(score.read_text())["protocol"]["floor"]["n"] == 10


def test_export_writes_the_checkpoints_weights(run: Path, tmp_path: Path) -> None:
    saved = tensors(run / "checkpoints" / "step-00000003")
    for words, prefix in (([], "ema"), (["--raw"], "net")):
        succeeds("export", run, tmp_path / prefix, *words)
        exported = load_file(tmp_path / prefix / "denoiser.safetensors")
        assert {f"{prefix}.denoiser.{name}" for name in exported} == {n for n in saved if n.startswith(f"{prefix}.")}
        for name, tensor in exported.items():
            assert torch.equal(tensor, torch.from_numpy(saved[f"{prefix}.denoiser.{name}"]))


def test_fid_without_its_weights_says_where_to_put_them(run: Path, reference: Path, tmp_path: Path) -> None:
    result = diffpipe("eval", run, "--reference", reference, "--metrics", "fid", "--inception", tmp_path / "absent.pt")
    assert result.returncode == 2
    assert f"{tmp_path}/absent.pt: cannot read the Inception weights" in result.stderr
    assert "fd_efficientnet_lite0, which works offline" in result.stderr


@pytest.mark.parametrize("name", ["train", "sample", "eval", "pack", "index", "encode", "export"])
def test_help_tells_of_every_option(name: str) -> None:
    result = diffpipe(name, "--help")
    assert result.returncode == 0
    assert f"usage: diffpipe {name}" in result.stdout
    assert (HOME / "diffpipe" / "cli" / f"{name}.py").exists()
