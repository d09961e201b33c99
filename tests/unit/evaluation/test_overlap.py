"""Images that two sets share, whatever they lie in, and what follows for a floor."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.file_images import FileImages
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.overlap import check_floor, floor_or_halves, overlap_check, shared_images
from diffpipe.evaluation.score_sources import ScoreSources
from diffpipe.metrics.image_hashes import image_hashes
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.tars import random_pixels


def folder(path: Path, seeds: range) -> FileImages:
    path.mkdir()
    for i in seeds:
        Image.fromarray(random_pixels(i)).save(path / f"{i}.bmp")
    return FileImages(str(path), 1, None)


def shards(path: Path, n: int) -> ShardImages:
    """Images of the seeds 0 to n - 1."""
    return ShardImages(shard_set.load(indexed_shards(path, n)), 1, None)


def test_equal_pixels_are_found_in_files_of_any_format(tmp_path: Path, runtime: Runtime) -> None:
    reference = shards(tmp_path / "reference", 6)
    assert shared_images(folder(tmp_path / "a", range(4, 9)), reference, runtime) == 2
    assert shared_images(folder(tmp_path / "b", range(6, 9)), reference, runtime) == 0
    assert shared_images(reference, reference, runtime) == 6


def test_a_floor_that_was_named_is_refused_where_the_reference_holds_some_of_it(
    tmp_path: Path, runtime: Runtime
) -> None:
    reference = shards(tmp_path / "reference", 6)
    with pytest.raises(
        UserError, match=r"floor x: the reference holds 2 of its 5 images, too.*or split for its halves"
    ):
        check_floor(folder(tmp_path / "a", range(4, 9)), reference, "x", runtime)
    check_floor(folder(tmp_path / "b", range(6, 9)), reference, "x", runtime)
    check_floor(None, reference, None, runtime)


def test_a_floor_by_default_gives_way_to_the_halves_of_the_reference(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, other = shards(tmp_path / "reference", 6), folder(tmp_path / "b", range(6, 9))
    assert floor_or_halves(other, reference, runtime) is other
    assert floor_or_halves(reference, reference, runtime) is None
    assert "the reference holds 6 of 6 training images, too: the floor is one half" in capsys.readouterr().err


def test_a_score_notes_scored_images_of_the_reference_and_refuses_them_in_the_floor(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, other = shards(tmp_path / "reference", 6), folder(tmp_path / "b", range(5, 9))
    inside, outside = image_hashes(reference.images(range(6))), image_hashes(other.images(range(4)))
    check = overlap_check(ScoreSources(reference, reference, other), runtime, floor="x")
    check({"reference": inside, "floor": outside[1:]})
    with pytest.raises(UserError, match=r"floor x: the reference holds 1 of its 4 images, too"):
        check({"reference": inside, "floor": outside})
    check({"reference": inside, "generated": outside[1:]})
    assert capsys.readouterr().err == ""
    check({"reference": inside, "generated": inside})
    assert "the reference holds 6 of the 6 scored images, too" in capsys.readouterr().err
