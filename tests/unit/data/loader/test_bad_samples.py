"""Bad samples in the stream: each keeps its position, is marked, and their number is limited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.decode.latents import to_bytes
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from tests.support.broken_images import (
    COLOUR,
    HTML,
    JPEG,
    REFUSED,
    flipped,
)
from tests.support.tars import png, random_pixels, write_tar


def stream_of(members: dict[str, bytes], folder: Path, **config):
    write_tar(folder / "shard.tar", members)
    write_index(folder)
    n = len({name.partition(".")[0] for name in members})
    return batches(
        DataConfig.model_validate(
            {
                "train": "",
                "batch_size": n,
                "resolution": 24,
                "channels": 3,
                "workers": 0,
                "shuffle_window": 100,
                **config,
            }
        ),
        load(str(folder)),
        0,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_keeps_its_position_in_a_batch(tmp_path: Path, workers: int) -> None:
    files = {f"bad{i}.png": make() for i, (make, _) in enumerate(REFUSED.values())}
    files |= {f"good{i}.jpg": png(random_pixels(i, (24, 24, 3))) for i in range(9)}  # the name does not matter
    members = {
        name: data for image, data in files.items() for name, data in ((image, data), (image[:-3] + "cls", b"7"))
    }
    stream = stream_of(members, tmp_path, labels=True, workers=workers, max_bad_samples=1)
    batch = next(stream)
    stream.close()
    assert batch.labels is not None
    assert batch.valid is not None
    assert sorted(batch.keys) == sorted(name[:-4] for name in files)
    assert batch.valid.tolist() == [key.startswith("good") for key in batch.keys]
    for key, image, label in zip(batch.keys, batch.images.numpy(), batch.labels.tolist(), strict=True):
        good = key.startswith("good")
        assert label == 7 * good
        assert np.array_equal(image, random_pixels(int(key[4:]), (24, 24, 3)).transpose(2, 0, 1) if good else 0 * image)
    bad = [key for key in batch.keys if key.startswith("bad")]
    for key, complaint in zip(bad, batch.errors, strict=True):
        assert complaint.startswith(f"{tmp_path}/shard.tar: {key}: ")


def test_no_sample_may_be_bad_by_default(tmp_path: Path) -> None:
    stream = stream_of({"a.png": HTML, "b.png": png(COLOUR)}, tmp_path)
    with pytest.raises(UserError, match=r"shard\.tar: a: not an image that can be decoded"):
        next(stream)
    (tmp_path / "b").mkdir()
    assert next(stream_of({"b.png": png(COLOUR)}, tmp_path / "b")).valid is None


def test_bytes_changed_after_indexing_are_a_bad_sample(tmp_path: Path) -> None:
    image = png(COLOUR)
    stream = stream_of({"a.png": image, "b.png": png(COLOUR[::-1])}, tmp_path, max_bad_samples=1)
    path = tmp_path / "shard.tar"
    path.write_bytes(path.read_bytes().replace(image, flipped(image, len(image) // 2)))
    batch = next(stream)
    assert batch.valid is not None
    assert [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if not valid] == ["a"]
    assert "a.png was changed after indexing" in batch.errors[0]


def test_a_missing_shard_is_not_a_bad_sample(tmp_path: Path) -> None:
    stream = stream_of({"a.png": png(COLOUR)}, tmp_path, max_bad_samples=9)
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        next(stream)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_latents_that_cannot_be_read_are_zeros_of_the_right_shape(tmp_path: Path, batch_size: int) -> None:
    latents = np.ones((8, 3, 3), dtype=np.float32)
    members = {f"{i}.latents.npy": to_bytes(latents)[:200] if i in (0, 2) else to_bytes(latents) for i in range(4)}
    stream = stream_of(members, tmp_path, batch_size=batch_size, max_bad_samples=2)
    for _ in range(4 // batch_size):
        batch = next(stream)
        assert batch.valid is not None
        assert batch.images.shape == (batch_size, 8, 3, 3)
        for key, image, valid in zip(batch.keys, batch.images, batch.valid.tolist(), strict=True):
            assert valid == (key not in ("0", "2"))
            assert (image == float(valid)).all()


def test_max_pixels_can_be_set(tmp_path: Path) -> None:
    for i, (most, valid) in enumerate([(24 * 40, True), (24 * 40 - 1, False)]):
        (tmp_path / str(i)).mkdir()
        batch = next(
            stream_of({"a.png": png(COLOUR), "b.jpg": JPEG}, tmp_path / str(i), max_bad_samples=1, max_pixels=most)
        )
        assert batch.valid is not None
        assert batch.valid.tolist() == [valid, valid]
