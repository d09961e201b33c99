"""The Python API: lazily imported, with examples that run, and the same images as the command's."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffpipe
from diffpipe import api
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from tests.support.commands import CONFIG, SHARDS, TINY

METHODS = [f"LoadedRun.{name}" for name in ("sample", "score", "nll", "classify", "interpolate")]
WORDS = [*TINY, "data.resolution=8", "data.workers=0", "train.precision=fp32", f"data.train={SHARDS / 'test'}"]
WORDS += ["data.test=null", "sample.every=0", "checkpoint.async=false"]


class Recorder(diffpipe.Callback):
    def __init__(self) -> None:
        self.logged: list[tuple[Mapping[str, Any], int]] = []
        self.samples: list[Path] = []

    def on_log(self, values: Mapping[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def on_samples(self, path: Path) -> None:
        self.samples.append(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny, trained for two steps."""
    home = tmp_path_factory.mktemp("api")
    assert diffpipe.train(CONFIG, [*WORDS, f"run.dir={home / 'runs/tiny'}", "train.steps=2"]) is None
    return home


def test_importing_the_package_imports_no_torch_and_lists_the_api() -> None:
    code = "import sys, diffpipe; print('torch' in sys.modules, *dir(diffpipe))"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert words[0] == "False"
    assert {"load", "stream", "train", "Callback", "__version__"} <= set(words)
    assert diffpipe.load is api.load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = diffpipe.laod  # pyright: ignore[reportAttributeAccessIssue]
    assert (Path(diffpipe.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", ["load", "score", "stream", "train", *METHODS])
def test_the_examples_run(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path if name == "train" else home)
    function: Any = api
    for part in name.split("."):
        function = getattr(function, part)
    config = {key: value.model_dump(mode="json", by_alias=True) for key, value in _sections(home).items()}
    scope = {"diffpipe": diffpipe, "shards": str(SHARDS / "test"), "config": config}
    if name.startswith("LoadedRun."):
        scope["run"] = diffpipe.load(home / "runs/tiny")
    (example,) = [test for test in doctest.DocTestFinder().find(function, name, globs=scope) if test.examples]
    assert doctest.DocTestRunner().run(example).failed == 0


def _sections(home: Path) -> dict[str, Any]:
    config = diffpipe.load(home / "runs/tiny").config
    return {key: getattr(config, key) for key in ("run", "data", "stage", "optimizer", "train", "checkpoint")}


def test_images_are_those_of_the_command(home: Path, tmp_path: Path) -> None:
    words = ["sample", str(home / "runs/tiny"), str(tmp_path), "--n", "3", "--seed", "5", "--steps", "2"]
    assert main(words) == 0
    images = diffpipe.load(home / "runs/tiny").sample(3, seed=5, steps=2)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:06d}.png")), image[0].numpy())


def test_options_go_to_the_sampler_and_are_refused_where_there_are_none(home: Path) -> None:
    run = diffpipe.load(home / "runs/tiny")
    torch.testing.assert_close(run.sample(2, steps=2), run.sample(2, steps=2), rtol=0, atol=0)
    assert not torch.equal(run.sample(2, steps=2), run.sample(2, steps=2, seed=1))
    assert run._with(kind="ancestral", steps=2).experiment.stage.sampler.model_dump()["kind"] == "ancestral"
    assert run.config.stage.sampler.model_dump()["steps"] == 3
    with pytest.raises(UserError, match="--temperature is for the sampling of a flow"):
        run.sample(2, temperature=0.5)
    with pytest.raises(UserError, match="reconstructs no images"):
        run.reconstruct(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_likelihoods_of_images_in_memory_are_those_of_shards(home: Path) -> None:
    run = diffpipe.load(home / "runs/tiny")
    options = {"batch_size": 4, "resolution": 8, "channels": 1, "workers": 0}
    images = next(diffpipe.stream(str(SHARDS / "test"), **options)).images
    values = run.nll(images, steps=2, labels=torch.zeros(4, dtype=torch.int64)).likelihoods.values["score"]
    assert values.shape == (4,)
    assert values.isfinite().all()


def test_a_callback_sees_what_the_trackers_see(tmp_path: Path) -> None:
    recorder = Recorder()
    words = [*WORDS, f"run.dir={tmp_path}", "train.steps=2", "sample.every=2", "sample.n=2"]
    diffpipe.train(CONFIG, words, callbacks=[recorder])
    assert [step for _, step in recorder.logged] == [1, 2]
    assert {"loss", "lr", "grad_norm"} <= set(recorder.logged[0][0])
    assert [path.name for path in recorder.samples] == ["step-00000002.png"]
