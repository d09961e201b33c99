"""`diffpipe classify` through the command: what it writes, and that processes do not change it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import SHARDS, refused, succeeds, train

N = 70


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    train(home, "train.steps=2", "data.resolution=8")
    return home


def test_the_classes_do_not_depend_on_the_number_of_processes(run: Path, tmp_path: Path) -> None:
    said, found = [], []
    for processes in (0, 2):
        out = tmp_path / f"{processes}.json"
        words = ["classify", run, SHARDS / "test", "--n", N, "--steps", 2, "--out", out]
        said.append(succeeds(*words, processes=processes))
        found.append(json.loads(out.read_text()))
    one, two = found
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-6)
    assert two["confusion"] == one["confusion"]
    assert sum(map(sum, one["confusion"])) == N
    scores, told = one["scores"], one["protocol"]
    right = sum(one["confusion"][i][i] for i in range(10))
    assert scores["accuracy"] == pytest.approx(right / N)
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    assert scores["tempered_log_loss"] == pytest.approx(math.log(10), abs=0.2)  # two steps teach nothing
    assert f"accuracy  {scores['accuracy']:.4f} (" in said[0]
    assert one["classes"][9] == "Ankle boot"
    for diagram in one["reliability"].values():
        assert (len(diagram["count"]), sum(diagram["count"])) == (15, N / 2)
    model = told["model"]
    assert (model["stage"], model["prior"], model["sampler"]["vlb_steps"], model["step"]) == ("ddpm", "data", 2, 2)
    assert told["reference"]["n"] == N
    with Image.open(tmp_path / "0.png") as picture:
        assert picture.width > picture.height > 600


def test_a_prior_whose_data_are_gone_is_refused(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "train.steps=1", "data.resolution=8", f"data.train={gone(tmp_path)}")
    (tmp_path / "shards").rename(tmp_path / "away")
    line = refused("classify", tmp_path / "run", SHARDS / "test", "--n", 4)
    assert "prior data needs the labels of the run's data.train" in line
    assert line.endswith("give another prior: SHARDS or uniform")


def gone(tmp_path: Path) -> Path:
    """Shards that will not stay where they are."""
    (tmp_path / "shards").mkdir()
    for path in (SHARDS / "test").iterdir():
        (tmp_path / "shards" / path.name).symlink_to(path)
    return tmp_path / "shards"
