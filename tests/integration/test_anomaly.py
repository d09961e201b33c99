"""`diffpipe anomaly` through the real command: an obvious anomaly is found, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import HOME, SHARDS, refused, succeeds, train

FASHION = HOME / "configs" / "fashion_mnist"


def packed(folder: Path, size: int) -> Path:
    """Shards of 40 images of noise."""
    (folder / "images").mkdir(parents=True)
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    succeeds("pack", folder / "images", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("noise"), 28)


@pytest.mark.parametrize(
    ("config", "scores"), [("autoencoder", ["error"]), ("vae", ["bound", "complexity", "typicality"])]
)
def test_noise_is_an_anomaly_to_what_learned_clothes(
    tmp_path: Path, noise: Path, config: str, scores: list[str]
) -> None:
    words = [] if config == "autoencoder" else ["stage.conditional=false"]
    train(tmp_path, "train.steps=20", "optimizer.warmup=0", *words, config=FASHION / f"{config}.yaml")
    said = succeeds("anomaly", tmp_path, "--normal", SHARDS / "test", "--abnormal", noise, "--n", 60)
    (path,) = (tmp_path / "scores").glob("anomaly-step-00000020-n100-*.json")
    result = json.loads(path.read_text())
    assert list(result["detection"]) == scores
    figures = result["detection"][scores[0]]
    assert figures["auroc"]["value"] > 0.95
    assert figures["fpr95"]["value"] < 0.1
    assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]
    assert f"{scores[0]:>12}  {figures['auroc']['value']:.4f}" in said
    assert (result["protocol"]["normal"]["n"], result["protocol"]["abnormal"]["n"]) == (60, 40)
    with Image.open(path.with_suffix(".png")) as picture:
        line = np.asarray(picture.convert("RGB"))[60].tolist()  # below the title and the numbers
    frames = [colour for colour in line if colour in ([70, 140, 70], [210, 40, 40])]
    assert frames[0] == [210, 40, 40]  # of the most anomalous image


def test_sets_of_other_sizes_and_stages_without_a_score_are_refused(tmp_path: Path, noise: Path) -> None:
    train(tmp_path / "run", "train.steps=1", config=FASHION / "autoencoder.yaml")
    small = packed(tmp_path / "small", 8)
    line = refused("anomaly", tmp_path / "run", "--normal", SHARDS / "test", "--abnormal", small)
    assert "error: abnormal: " in line
    assert "8x8 and the run was trained at 28x28" in line
    assert "--resolution 28" in line
    train(tmp_path / "gan", "train.steps=1", "stage.conditional=false", config=FASHION / "gan.yaml")
    line = refused("anomaly", tmp_path / "gan", "--normal", SHARDS / "test", "--abnormal", noise)
    assert "stage.kind gan has no likelihood and no error" in line
