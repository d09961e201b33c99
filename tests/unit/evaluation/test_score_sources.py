"""The images of a score: what is read as files and what as shards, and the one shape of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.evaluation.file_images import FileImages
from diffpipe.evaluation.image_sources import GeneratedImages, ShardImages
from diffpipe.evaluation.score_sources import floor_count, open_images, score_sources
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise, indexed_shards


def photos(path: Path, *sides: int) -> str:
    path.mkdir()
    for i, side in enumerate(sides):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    return str(path)


def test_a_folder_of_tars_is_shards_and_another_is_images(tmp_path: Path) -> None:
    assert isinstance(open_images(indexed_shards(tmp_path / "shards", 3), 3, None), ShardImages)
    assert isinstance(open_images(photos(tmp_path / "photos", 8), 3, None), FileImages)


def test_a_run_is_no_images(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="a run, and no images; a run is scored as the first argument of diffpipe eval"):
        open_images(tiny_run, 3, None)


def test_the_reference_and_the_floor_take_the_shape_of_the_run(tmp_path: Path, runtime: Runtime) -> None:
    generated = GeneratedImages(Noise(), {}, ImageShape(1, square(8), 3), runtime, n=3, seed=0)
    reference, floor = photos(tmp_path / "reference", 16, 9, 12), photos(tmp_path / "floor", 10, 10, 10, 10)
    sources = score_sources(generated, reference, floor, square(8))
    assert sources.floor is not None
    for source in (sources.generated, sources.reference, sources.floor):
        assert source.images(range(3)).shape == (3, 1, 8, 8)
        assert source.describe().items() >= {"size": [8, 8], "channels": 1}.items()
    assert [sources.generated.describe()["resize"], sources.reference.describe()["resize"][:12]] == [
        "none",
        "shorter side",
    ]
    assert sources.floor.n == 3


def test_unlike_sizes_are_refused_without_a_resolution(tmp_path: Path) -> None:
    small, large = photos(tmp_path / "small", 8, 8), photos(tmp_path / "large", 16, 16)
    with pytest.raises(UserError, match="the reference holds images of 16x16 pixels and the scored ones have 8x8"):
        score_sources(open_images(small, 3, None), large, None, None)
    sources = score_sources(open_images(small, 3, square(4)), large, "split", square(4))
    assert sources.reference.images(range(2)).shape == (2, 3, 4, 4)
    assert sources.floor is None


def test_the_default_number_of_images_is_that_of_a_smaller_floor(tmp_path: Path) -> None:
    assert floor_count(None) == floor_count("split") == 1000
    assert floor_count(indexed_shards(tmp_path, 3)) == 3


def test_a_name_of_nothing_is_refused_with_all_that_may_be_given() -> None:
    with pytest.raises(UserError, match=r"^runs/nope: there is nothing of this name; give a run, a folder of images"):
        open_images("runs/nope", 3, None)
