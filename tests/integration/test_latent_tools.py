"""`diffpipe attribute`, `interpolate` and `latent-map` through the commands: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import HOME, SHARDS, refused, succeeds, train

FASHION = HOME / "configs" / "fashion_mnist"
TEST = SHARDS / "test"
SMALL = ("train.steps=2", "data.resolution=8", "data.labels=true")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A VAE that knows no classes, one that does, and a GAN."""
    home = tmp_path_factory.mktemp("runs")
    for name, config, conditional in (("vae", "vae", False), ("by_class", "vae", True), ("gan", "gan", True)):
        words = [*SMALL, f"stage.conditional={str(conditional).lower()}"]
        train(home / name, *words, config=FASHION / f"{config}.yaml")
    return {path.name: path for path in home.iterdir()}


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def height(rows: int) -> int:
    """The size of a picture of 8×8 images, enlarged eight times and framed, under a title and column labels."""
    return rows * 66 + 52


def test_an_attribute_is_moved_alike_on_one_process_and_on_two(tmp_path: Path, runs: dict[str, Path]) -> None:
    said = []
    for processes in (0, 2):
        out = tmp_path / "new" / f"{processes}.png"
        words = ["attribute", runs["vae"], TEST, "--from", 7, "--to", 9, out, "--n", 60, "--rows", 3]
        said.append(succeeds(*words, processes=processes))
    one, two = (json.loads((tmp_path / "new" / f"{processes}.json").read_text()) for processes in (0, 2))
    assert (tmp_path / "new" / "0.png").read_bytes() == (tmp_path / "new" / "2.png").read_bytes()
    assert one | {"protocol": one["protocol"] | {"date": ""}} == two | {"protocol": two["protocol"] | {"date": ""}}
    assert size(tmp_path / "new" / "0.png")[1] == height(3)
    assert one["from"] == {"class": 7, "name": "Sneaker", "n": 60}
    assert one["to"] == {"class": 9, "name": "Ankle boot", "n": 60}
    assert [moved["strength"] for moved in one["nearer_to"]["moved"]] == [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert one["nearer_to"]["n"] == 60
    assert one["protocol"]["model"]["step"] == 2
    assert len(one["protocol"]["shards"]["fingerprint"]) == 64
    assert "nearer to Ankle boot than to Sneaker at strengths -0.5 -0.25 0" in said[0]


@pytest.mark.parametrize("run", ["vae", "by_class"])
def test_real_images_stand_at_the_ends_of_an_interpolation(tmp_path: Path, runs: dict[str, Path], run: str) -> None:
    out = tmp_path / "between.png"
    succeeds("interpolate", runs[run], out, "--shards", TEST, "--n", 4, "--columns", 9)
    assert size(out) == (11 * 66, height(4))
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("L"))[52:].reshape(4, 66, 11, 66)[:, 1:65, :, 1:65]
    assert pixels[:, :, [0, 10]].std() > 1.5 * pixels[:, :, 1:10].std()  # what is hardly trained is flat


def test_what_only_generates_interpolates_between_noises(tmp_path: Path, runs: dict[str, Path]) -> None:
    said = succeeds("interpolate", runs["gan"], tmp_path / "noises.png", "--n", 2, "--columns", 4, "--label", 3)
    assert size(tmp_path / "noises.png")[1] == height(2)
    assert "2 pairs, 4 points from one to the other" in said


def test_latents_are_mapped(tmp_path: Path, runs: dict[str, Path]) -> None:
    said = succeeds("latent-map", runs["vae"], TEST, tmp_path / "map.png", "--n", 100)
    assert "100 latents on the first two principal components, " in said
    width, tall = size(tmp_path / "map.png")
    assert width > 2 * tall > 1200
    succeeds("latent-map", runs["by_class"], TEST, tmp_path / "one.png", "--n", 20)
    assert size(tmp_path / "one.png")[0] < width  # without a class, nothing on the plane can be decoded


REFUSED = {
    "one class": ("attribute {vae} {test} {out} --from 3 --to 3", "class 3 is both the one to move from and the one"),
    "no such class": ("attribute {vae} {test} {out} --from 0 --to 10", "10 is no class of"),
    "too few images": ("attribute {vae} {few} {out} --from 0 --to 1", "hold 1 image of class one, and 2 are needed"),
    "no labels": ("attribute {vae} {unlabelled} {out} --from 0 --to 1", "some samples have no label"),
    "a map without labels": ("latent-map {vae} {unlabelled} {out}", "some samples have no label"),
    "a class-conditional run": ("attribute {by_class} {test} {out} --from 0 --to 1", "its latents lack it; give a run"),
    "no latents": ("attribute {gan} {test} {out} --from 0 --to 1", "GAN has no latents of images; give a run of an"),
    "a map of no latents": ("latent-map {gan} {test} {out}", "GAN has no latents of images; give a run of an"),
    "no chain": (
        "sample {gan} {out} --trajectory",
        "is of stage.kind gan, which generates without a chain of noise levels; leave the trajectory out",
    ),
    "no latents to go between": ("interpolate {gan} {out} --shards {test}", "GAN has no latents of images"),
    "more pairs than images": (
        "interpolate {vae} {out} --shards {few} --n 3",
        "6 are needed for 3 pairs; give a smaller n",
    ),
    "no picture": ("latent-map {vae} {test} {out}.json", "give a name that ends in .png"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("images")
    for name in ("few/zero/a", "few/zero/b", "few/one/c", "unlabelled/d"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40).save(home / f"{name}.png")
    for name in ("few", "unlabelled"):
        succeeds("pack", home / name, home / "shards" / name)
    shards = {name: home / "shards" / name for name in ("few", "unlabelled")}
    return {**runs, **shards, "test": TEST, "out": home / "out.png"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(places: dict[str, Path], case: str) -> None:
    words, message = REFUSED[case]
    line = refused(*words.format(**places).split())
    assert message in line


def test_an_autoencoder_needs_images_to_go_between(tmp_path: Path) -> None:
    train(tmp_path, "train.steps=1", "data.resolution=8", config=FASHION / "autoencoder.yaml")
    line = refused("interpolate", tmp_path, tmp_path / "out.png")
    assert "a run of stage.kind autoencoder generates nothing from noise; give shards with images" in line
