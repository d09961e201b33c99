"""Images that are not square through the commands: packed, trained on, resumed, sampled, scored, exported, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from tests.support.commands import TINY, refused, succeeds, tensors, train

SIZE = ["data.resolution=[8,12]", "data.workers=0", "data.crop=random", "data.channels=3", "data.labels=false"]
WORDS = [*TINY, *SIZE, "stage.conditional=false", "train.precision=fp32", "sample.every=0", "eval.every=0"]
WORDS += ["data.test=null", "data.batch_size=8", "checkpoint.async=false"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos of 20x24 pixels (height x width)."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    succeeds("pack", photos, out, "--resolution", "8x12")
    return out


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    said = train(home, *WORDS, f"data.train={shards}", "train.steps=3", "checkpoint.every=2")
    assert "12 images at 8x12x3" in said
    return home


def score(*words: object) -> dict[str, Any]:
    *rest, out = words
    succeeds("eval", *rest, "--metrics", "fd_efficientnet_lite0", "--out", out)
    return json.loads(Path(str(out)).read_text())


def test_packed_images_are_resized_to_cover_and_cropped(photos: Path, shards: Path) -> None:
    loaded = shard_set.load(str(shards))
    images = sequential_reader.images(loaded, range(12), None, 3)
    assert images.shape == (12, 3, 8, 12)
    wanted = set()
    for file in photos.iterdir():
        with Image.open(file) as photo:
            wanted.add(photo.resize((12, 10), Image.Resampling.BICUBIC).crop((0, 1, 12, 9)).tobytes())
    assert {image.permute(1, 2, 0).numpy().tobytes() for image in images} == wanted


def test_a_run_resumes_samples_and_scores(run: Path, shards: Path, photos: Path, tmp_path: Path) -> None:
    resumed, words = tmp_path / "resumed", [*WORDS, f"data.train={shards}", "checkpoint.every=2"]
    train(resumed, *words, "train.steps=2")
    train(resumed, *words, "train.steps=3")
    last = "checkpoints/step-00000003"
    uninterrupted = tensors(run / last)
    assert all(np.array_equal(tensor, uninterrupted[name]) for name, tensor in tensors(resumed / last).items())
    assert "data.resolution was 8x12 and is 8;" in refused("train", run / "config.yaml", "data.resolution=8")

    succeeds("sample", run, tmp_path / "samples", "--n", 6, "--steps", 2)
    with Image.open(tmp_path / "samples" / "000000.png") as image:
        assert image.size == (12, 8)
    with Image.open(tmp_path / "samples" / "grid.png") as grid:
        assert grid.width > grid.height  # three columns of wide images in two rows

    of_run = score(run, "--reference", shards, "--n", 6, "--steps", 2, tmp_path / "run.json")
    of_folder = score(tmp_path / "samples", "--reference", shards, tmp_path / "folder.json")
    of_photos = score(tmp_path / "samples", "--reference", photos, "--resolution", "8x12", tmp_path / "photos.json")
    assert of_folder["scores"] == pytest.approx(of_run["scores"], rel=1e-6)
    assert of_photos["scores"] == pytest.approx(of_run["scores"], rel=1e-2)  # torch resizes them, not PIL
    protocol = of_photos["protocol"]
    assert protocol["generated"]["size"] == protocol["reference"]["size"] == [8, 12]
    assert protocol["reference"]["resize"].startswith("to the smallest size that covers this one")
    assert protocol["metrics"]["fd_efficientnet_lite0"]["resize"].endswith("by its own factor from [8, 12]")


def test_sizes_that_do_not_fit_are_refused_in_one_line(run: Path, shards: Path, photos: Path, tmp_path: Path) -> None:
    line = refused("eval", shards, "--reference", photos, "--metrics", "fd_efficientnet_lite0")
    assert "the reference holds images of 20x24 pixels and the scored ones have 8x12 pixels (height x width)" in line
    line = refused("eval", run, "--reference", shards, "--resolution", "12x8")
    assert "--resolution 12x8: the run makes images of 8x12; leave it out" in line
    for text in ("0x3", "8x", "8x9x3", "x8", "8.5"):
        line = refused("pack", photos, tmp_path / "out", "--resolution", text)
        assert f"{text} is no size in pixels; give one side, such as 64, or height x width, such as 48x64" in line
    for value in ("[0,3]", "[8,8,8]", "8x12", "true"):
        line = refused("train", run / "config.yaml", f"data.resolution={value}", f"run.dir={tmp_path / 'new'}")
        assert "data.resolution: give one side in pixels, such as 64, or [height, width], such as [48, 64]" in line
    words = [run / "config.yaml", "data.resolution=[8,9]", f"run.dir={tmp_path / 'new'}"]
    line = refused("train", *words)
    assert "data.resolution 8x9 cannot be halved 1 time for stage.network.channel_mult" in line
