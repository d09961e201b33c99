"""Shards of codes through the commands: `encode` writes those of a vq run, and an autoregressive model learns them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import SHARDS, metrics, refused, seen, succeeds
from tests.support.stage_cases import CASES

TEST = SHARDS / "test"
VQ, TRANSFORMER, DIFFUSION = (CASES[name] for name in ("vq, scales", "autoregressive, scales", "ddpm"))
SETTINGS = ("train.steps=2", "train.precision=fp32", "train.record_samples=true")


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vq")
    succeeds("train", VQ.path, f"run.dir={run}", f"data.train={TEST}", *VQ.overrides(), *SETTINGS, "checkpoint.every=1")
    return run


@pytest.fixture(scope="module")
def codes(vq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "shards"
    printed = succeeds("encode", vq, TEST, out)
    assert f"2000 images as 21 codes each in 2 shards: {out}" in printed  # 1 + 2 x 2 + 4 x 4
    return out


def words(run: Path, vq: Path) -> list[object]:
    return ["train", TRANSFORMER.path, f"run.dir={run}", f"stage.codec.run={vq}", *TRANSFORMER.overrides(), *SETTINGS]


def test_training_from_codes_equals_encoding_on_the_fly(vq: Path, codes: Path, tmp_path: Path) -> None:
    for name, shards in (("images", TEST), ("codes", codes)):
        succeeds(*words(tmp_path / name, vq), f"data.train={shards}")
    assert seen(tmp_path / "codes") == seen(tmp_path / "images")
    losses = {step: line["loss"] for step, line in metrics(tmp_path / "images").items()}
    assert {step: line["loss"] for step, line in metrics(tmp_path / "codes").items()} == pytest.approx(losses, rel=1e-5)
    assert sorted(losses) == [1, 2]
    succeeds("sample", tmp_path / "codes", tmp_path / "out", "--n", 1)


def test_two_processes_encode_what_one_does(vq: Path, codes: Path, tmp_path: Path) -> None:
    succeeds("encode", vq, TEST, tmp_path / "out", processes=2)
    names = sorted(path.name for path in codes.iterdir())
    assert names == ["codec.json", "index.safetensors", "latents-000000.tar", "latents-000001.tar"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (codes / name).read_bytes(), name


def test_codes_of_another_checkpoint_and_a_stage_without_them_are_refused(
    vq: Path, codes: Path, tmp_path: Path
) -> None:
    other = vq / "checkpoints" / "step-00000001"
    line = refused(*words(tmp_path / "a", other), f"data.train={codes}")
    assert "encode the images again, or set stage.codec.sha256" in line
    line = refused("train", DIFFUSION.path, f"run.dir={tmp_path / 'b'}", *DIFFUSION.overrides(), f"data.train={codes}")
    assert "hold codes, which are for stage.kind=autoregressive with stage.codec.kind=vq; set both" in line


def test_the_likelihood_of_images_under_a_model_of_codes_is_refused_with_what_has_one(vq: Path, tmp_path: Path) -> None:
    succeeds(*words(tmp_path / "run", vq), f"data.train={TEST}")
    for command, *more in (("nll",), ("classify",), ("compress", tmp_path / "x")):
        line = refused(command, tmp_path / "run", TEST, *more)
        assert "give a run with stage.tokens.kind=pixels, or give its autoencoder to diffpipe anomaly" in line
    line = refused("encode", tmp_path / "run", TEST, tmp_path / "out")
    assert "give one of stage.kind=vae with spatial latents, or of stage.kind=vq" in line
