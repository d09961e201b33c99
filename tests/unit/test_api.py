"""The Python API: lazily imported, with examples that run."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import diffpipe
from diffpipe import api, plugins
from diffpipe.data.packing.open_source import open_source
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import StoredImages
from diffpipe.metrics.features import Extractor
from tests.support.commands import CONFIG, SHARDS
from tests.support.runs import TINY_WORDS, indexed_shards
from tests.support.tars import random_pixels

METHODS = [
    f"LoadedRun.{name}" for name in ("sample", "trajectory", "score", "nll", "classify", "interpolate", "compress")
]


class Recorder(diffpipe.Callback):
    def __init__(self) -> None:
        self.logged: list[tuple[Mapping[str, Any], int]] = []
        self.samples: list[Path] = []

    def on_log(self, values: Mapping[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def on_samples(self, path: Path) -> None:
        self.samples.append(path)


def test_importing_the_package_imports_no_torch_and_lists_the_api() -> None:
    code = "import sys, diffpipe; print('torch' in sys.modules, *dir(diffpipe))"
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert words[0] == "False"
    assert {"load", "stream", "train", "Callback", "__version__"} <= set(words)
    assert diffpipe.load is api.load
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = diffpipe.laod  # pyright: ignore[reportAttributeAccessIssue]
    assert (Path(diffpipe.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", ["load", "score", "stream", "train", "decompress", *METHODS])
def test_the_examples_run(name: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path if name == "train" else tiny_run.parents[1])
    function: Any = api
    for part in name.split("."):
        function = getattr(function, part)
    config = {key: value.model_dump(mode="json", by_alias=True) for key, value in _sections(tiny_run).items()}
    scope = {"diffpipe": diffpipe, "shards": indexed_shards(tmp_path / "shards", 12), "config": config}
    if name.startswith("LoadedRun."):
        scope["run"] = diffpipe.load(tiny_run)
    (example,) = [test for test in doctest.DocTestFinder().find(function, name, globs=scope) if test.examples]
    assert doctest.DocTestRunner().run(example).failed == 0


def _sections(tiny_run: Path) -> dict[str, Any]:
    config = diffpipe.load(tiny_run).config
    return {key: getattr(config, key) for key in ("run", "data", "stage", "optimizer", "train", "checkpoint")}


def photos(folder: Path, seeds: range) -> str:
    folder.mkdir()
    for i in seeds:
        Image.fromarray(random_pixels(i, (8, 8, 3))).save(folder / f"{(7 * i) % 31:02d}.png")
    return str(folder)


def packed(folder: str, out: Path) -> str:
    pack(open_source(folder), out, seed=3)
    return str(out)


@pytest.fixture
def _pixels_as_features(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Extractor("pixels", 12, "hash", "none", lambda x: x[:, :, ::4, ::4].flatten(1).float())
    monkeypatch.setitem(plugins._parts, "feature_networks", {"pixels": network})


@pytest.mark.usefixtures("_pixels_as_features")
@pytest.mark.parametrize("floor", [None, "given"])
def test_the_same_images_score_the_same_and_have_the_same_floor_whatever_they_lie_in(
    tmp_path: Path, floor: str | None
) -> None:
    scored, real, other = (
        photos(tmp_path / name, range(*seeds)) for name, seeds in {"a": (0, 9), "b": (9, 30), "c": (31, 40)}.items()
    )
    metrics, floor = ["fd_pixels", "kid_pixels"], floor and other
    of_folders = diffpipe.score(scored, real, metrics=metrics, floor=floor)
    shards = packed(real, tmp_path / "shards")
    of_shards = diffpipe.score(packed(scored, tmp_path / "scored"), shards, metrics=metrics, floor=floor)
    assert of_shards.scores == pytest.approx(of_folders.scores)
    assert of_shards.floor == pytest.approx(of_folders.floor)


@pytest.mark.usefixtures("_pixels_as_features")
def test_a_score_decodes_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_images = StoredImages.images
    note = lambda self, indices: read.extend(indices) or read_images(self, indices)  # noqa: E731
    monkeypatch.setattr(StoredImages, "images", note)
    places = [photos(tmp_path / name, seeds) for name, seeds in (("a", range(9)), ("b", range(8, 30)))]
    floor = photos(tmp_path / "c", range(31, 40))
    diffpipe.score(*places, metrics=["fd_pixels"], floor=floor)
    assert sorted(read) == sorted([*range(9), *range(22), *range(9)])


@pytest.mark.usefixtures("_pixels_as_features")
def test_a_floor_with_images_of_the_reference_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    scored, real = photos(tmp_path / "a", range(4)), photos(tmp_path / "b", range(4, 12))
    with pytest.raises(UserError, match=r"floor .*/c: the reference holds 1 of its 4 images, too"):
        diffpipe.score(scored, real, metrics=["fd_pixels"], floor=photos(tmp_path / "c", range(11, 15)))


def test_a_callback_sees_what_the_trackers_see(tmp_path: Path) -> None:
    recorder = Recorder()
    words = [*TINY_WORDS, f"run.dir={tmp_path}", "train.steps=2", "sample.every=2", "sample.n=2"]
    diffpipe.train(CONFIG, words, callbacks=[recorder])
    assert [step for _, step in recorder.logged] == [1, 2]
    assert {"loss", "lr", "grad_norm"} <= set(recorder.logged[0][0])
    assert [path.name for path in recorder.samples] == ["step-00000002.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 2, "world": 2}, "rank is 2 and world is 2; ranks are 0 to world - 1"),
        ({"rank": -1, "world": 2}, "rank is -1"),
        ({"world": 0}, "world is 0"),
        ({"start": -1}, "start is -1 and seed is 0; give 0 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_part_of_the_stream_that_does_not_exist_is_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        diffpipe.stream(SHARDS / "test", batch_size=4, resolution=8, channels=1, workers=0, **options)


def test_two_threads_do_not_train_in_one_run_directory(tmp_path: Path) -> None:
    words = [*TINY_WORDS, f"run.dir={tmp_path}/run", "train.steps=1"]
    errors: list[str] = []

    class Second(diffpipe.Callback):
        def on_log(self, values: Mapping[str, Any], step: int) -> None:
            with ThreadPoolExecutor(1) as pool, pytest.raises(UserError) as caught:
                pool.submit(diffpipe.train, CONFIG, words).result()
            errors.append(str(caught.value))

    diffpipe.train(CONFIG, words, callbacks=[Second()])
    (error,) = errors
    assert error.startswith(f"another job trains in {tmp_path}/run (process {os.getpid()} on ")


def test_training_from_a_mapping_leaves_it_as_it_is() -> None:
    config = {"stage": {"kind": "ddpm", "network": {"channels": 8}}}
    with pytest.raises(UserError):
        diffpipe.train(config, ["stage.network.channels=16", "stage.network.zzz=1"])
    assert config == {"stage": {"kind": "ddpm", "network": {"channels": 8}}}
