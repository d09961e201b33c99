"""The data set behind the stream: what does not fit the config is refused before the first batch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.dataset import Dataset
from diffpipe.errors import UserError
from diffpipe.resolution import square
from tests.support.tars import png, random_pixels, write_shards, write_tar

CONFIG = DataConfig(train="unused", batch_size=12, resolution=square(8), channels=1, labels=True, workers=0)


def changed(**values: Any) -> DataConfig:
    return DataConfig(**{**CONFIG.model_dump(), **values})


def test_missing_labels_and_images_are_named_before_the_first_batch(tmp_path: Path) -> None:
    image = png(random_pixels(0))
    write_tar(tmp_path / "0.tar", {"a.png": image, "a.cls": b"0"})
    write_tar(tmp_path / "1.tar", {"a.png": image, "a.cls": b"0", "b.png": image})
    write_tar(tmp_path / "2.tar", {"a.png": image, "a.cls": b"cat"})
    write_tar(tmp_path / "3.tar", {"a.txt": b"no image", "a.cls": b"0"})
    write_index(tmp_path)
    for name, word in (("1.tar", "data.labels"), ("2.tar", "not integers"), ("3.tar", "no image")):
        with pytest.raises(UserError, match=rf"{re.escape(name)}: .*{re.escape(word)}"):
            batches(changed(batch_size=1), load([f"{tmp_path}/0.tar", f"{tmp_path}/{name}"]), 0)
    stream = batches(changed(batch_size=1, labels=False), load(f"{tmp_path}/{{0,1,2}}.tar"), 0)
    assert next(stream).labels is None


def test_a_batch_smaller_than_the_world_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [20])
    write_index(tmp_path)
    with pytest.raises(UserError, match=r"data\.batch_size=12.*make it 14"):
        batches(CONFIG, load(str(tmp_path)), 0, world=7, accumulate=2)


def test_a_batch_depends_on_its_positions_alone(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 9], size=(10, 12))
    write_index(tmp_path)
    shards, config = load(str(tmp_path)), changed(flip=True, crop="random", shuffle_window=4)
    positions = np.array([3, 17, 4, 40])
    whole = Dataset(config, shards, seed=2).batch(positions)
    other = Dataset(config, shards, seed=2)
    other.batch(np.arange(7))
    for row, position in enumerate(positions):
        single = other.batch(positions[row : row + 1])
        assert (single.keys[0], single.positions.tolist()) == (whole.keys[row], [position])
        assert torch.equal(single.images[0], whole.images[row])
    shard, number = (index.tolist() for index in Dataset(config, shards, seed=2).order.at(positions))
    assert list(whole.keys) == [shards.sample(s, i).key for s, i in zip(shard, number, strict=True)]
    assert whole.labels is not None
    assert whole.labels.tolist() == [int(key) % 3 for key in whole.keys]


def test_images_are_written_into_the_given_array(tmp_path: Path) -> None:
    write_shards(tmp_path, [6])
    write_index(tmp_path)
    into = np.zeros((3, 1, 8, 8), np.uint8)
    batch = Dataset(changed(), load(str(tmp_path)), seed=0).batch(np.arange(3), into)
    assert batch.images.data_ptr() == into.ctypes.data
    expected = np.stack([random_pixels(int(key))[None] for key in batch.keys])
    assert np.array_equal(into, expected)
