"""Packing: the same input gives the same bytes, and a failure leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from webdataset.compat import WebDataset

from diffpipe.data import images, labels, load
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import by_bytes, idx_source

FASHION = Path(__file__).parents[4] / "configs" / "fashion_mnist" / "shards"


def test_the_same_input_gives_the_same_bytes_and_another_seed_others(digits: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pack(idx_source(digits), tmp_path / name, shard_samples=15, per_class=5, seed=seed)
    assert by_bytes(tmp_path / "a") == by_bytes(tmp_path / "b")
    a, c = (load(str(tmp_path / name)) for name in "ac")
    assert {a.sample(0, i).key for i in range(15)} != {c.sample(0, i).key for i in range(15)}


def test_a_bad_image_is_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    bad = folder / "bee" / "2.png"
    bad.write_bytes(b"no image")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="not an image") as caught:
        pack(FolderSource(folder), tmp_path / "out")
    assert str(bad) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_out_folder_with_something_in_it_is_left_alone(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pack(idx_source(digits), out)
    before = by_bytes(out)
    for path in (out, out / "shard-000000.tar"):
        with pytest.raises(UserError, match="exists already"):
            pack(idx_source(digits), path)
    assert by_bytes(out) == before
    with pytest.raises(UserError, match="--prefix"):
        pack(idx_source(digits), tmp_path / "other", prefix="../x")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_the_fashion_mnist_in_the_repository_is_whole_and_balanced(split: str, per_class: int) -> None:
    shards = load(str(FASHION / split))
    assert shards.total == 10 * per_class
    assert shards.classes is not None
    assert (shards.classes[0], shards.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert labels(shards, range(shards.total)).bincount().tolist() == [per_class] * 10
    for shard in range(len(shards.paths)):  # each shard mixes the classes: 100 of 1000 expected, standard deviation 9
        assert abs(labels(shards, range(shard * 1000, shard * 1000 + 1000)).bincount() - 100).max() < 50
    assert images(shards, range(100), None, 1).shape == (100, 1, 28, 28)
    rows = list(WebDataset(shards.paths, shardshuffle=False, empty_check=False))
    assert [row["__key__"] for row in rows[:500]] == [shards.sample(0, i).key for i in range(500)]
    assert len({row["__key__"] for row in rows}) == shards.total
