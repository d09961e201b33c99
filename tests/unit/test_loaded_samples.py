"""The images of a loaded run: those of the command, with each of its options by the same name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffpipe
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from diffpipe.experiment.sampling_options import SamplingOptions
from tests.support.commands import CONFIG
from tests.support.runs import TINY_WORDS, saved_run


@pytest.fixture(scope="module")
def power_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averages of two lengths."""
    run = tmp_path_factory.mktemp("power")
    words = [
        *TINY_WORDS,
        f"run.dir={run}",
        "train.steps=2",
        "ema={kind: power, sigma_rel: [0.05, 0.1], snapshot_every: 1}",
    ]
    assert diffpipe.train(CONFIG, words) is None
    return run


def by_command(run: Path, out: Path, *words: object) -> np.ndarray:
    """The command's images, [n, h, w]."""
    assert main(["sample", str(run), str(out), "--n", "3", "--seed", "5", *map(str, words)]) == 0
    return np.stack([np.asarray(Image.open(out / f"{i:06d}.png")) for i in range(3)])


OPTIONS: dict[str, tuple[dict[str, Any], list[object]]] = {
    "steps": ({"steps": 2}, ["--steps", 2]),
    "a sampler": (
        {"sampler": "dpmpp_2m", "steps": 3, "spacing": "log_snr"},
        ["--sampler", "dpmpp_2m", "--steps", 3, "--spacing", "log_snr"],
    ),
    "churn": (
        {"sampler": "edm", "steps": 3, "spacing": "karras", "churn": 2.0},
        ["--sampler", "edm", "--steps", 3, "--spacing", "karras", "--churn", 2],
    ),
    "eta without clipping": ({"eta": 0.5, "clip": False}, ["--eta", 0.5, "--clip", "false"]),
    "a threshold": ({"dynamic_threshold": 0.9}, ["--dynamic-threshold", 0.9]),
    "a variance": (
        {"sampler": "ancestral", "variance": "large"},
        ["--sampler", "ancestral", "--variance", "large"],
    ),
    "guidance in an interval": (
        {"guidance": 3.0, "guidance_interval": (0.1, 5.0)},
        ["--guidance", 3, "--guidance-interval", "0.1,5"],
    ),
    "a label": ({"label": "Bag"}, ["--label", "Bag"]),
}
OF_LABELS = {"guidance in an interval", "a label"}  # after two steps of training, labels have no effect yet


@pytest.mark.parametrize("name", OPTIONS)
def test_images_are_those_of_the_command(tiny_run: Path, tmp_path: Path, name: str) -> None:
    options, words = OPTIONS[name]
    run = diffpipe.load(tiny_run)
    images = run.sample(3, seed=5, **options)
    np.testing.assert_array_equal(images[:, 0].numpy(), by_command(tiny_run, tmp_path, *words))
    protocol = json.loads((tmp_path / "samples.json").read_text())["protocol"]["generated"]
    sampler = run._sampling(SamplingOptions(**{key: options[key] for key in options if key != "label"}))
    assert protocol["sampler"] == sampler.describe()["sampler"]
    if name not in OF_LABELS:
        assert not torch.equal(images, run.sample(3, seed=5)), "the option has no effect"


def test_a_guide_is_that_of_the_command(tiny_run: Path, tmp_path: Path) -> None:
    saved_run(tmp_path / "guide", "stage.conditional=true")
    run, guide = diffpipe.load(tiny_run), tmp_path / "guide"
    images = run.sample(3, seed=5, guide=guide, guidance=2.0)
    words = ["--guide", guide, "--guidance", 2]
    np.testing.assert_array_equal(images[:, 0].numpy(), by_command(tiny_run, tmp_path / "out", *words))
    assert not torch.equal(images, run.sample(3, seed=5))
    with pytest.raises(UserError, match="guide has no effect at guidance 1"):
        run.sample(3, guide=guide)


def test_an_average_of_another_length_is_that_of_the_command(power_run: Path, tmp_path: Path) -> None:
    run = diffpipe.load(power_run)
    images = run.sample(3, seed=5, ema=0.1, steps=2)
    words = ["--ema", 0.1, "--steps", 2]
    np.testing.assert_array_equal(images[:, 0].numpy(), by_command(power_run, tmp_path, *words))
    assert torch.equal(images, diffpipe.load(power_run, ema=0.1).sample(3, seed=5, steps=2))
    assert run.weights == "ema 0.05"


def test_options_are_refused_where_there_are_none(tiny_run: Path) -> None:
    run = diffpipe.load(tiny_run)
    torch.testing.assert_close(run.sample(2, steps=2), run.sample(2, steps=2), rtol=0, atol=0)
    assert not torch.equal(run.sample(2, steps=2), run.sample(2, steps=2, seed=1))
    assert run._with(kind="ancestral", steps=2).experiment.stage.sampler.model_dump()["kind"] == "ancestral"
    assert run.config.stage.sampler.model_dump()["steps"] == 3
    with pytest.raises(UserError, match=r"^temperature is for the sampling of a flow"):
        run.sample(2, temperature=0.5)
    misspelt: Any = {"stpes": 2}
    with pytest.raises(UserError, match="stpes is no option of sampling; did you mean steps"):
        run.sample(2, **misspelt)


def test_the_last_column_of_a_trajectory_has_the_images(tiny_run: Path) -> None:
    run = diffpipe.load(tiny_run)
    trajectory = run.trajectory(3, columns=3, seed=5, steps=4, sampler="heun", spacing="log_snr")
    assert torch.equal(trajectory.x0[:, -1], run.sample(3, seed=5, steps=4, sampler="heun", spacing="log_snr"))
    assert trajectory.sampler == "heun, 4 steps, spacing log_snr"
