"""The loaders that eval/speed/images.py compares make the same images, and its table is complete."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import numpy as np
import pytest

from eval.speed import images
from eval.speed.noise import KINDS, make_images
from tests.support.markdown_tables import table_rows

# webdataset leaves a shard open that is not read to its end
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def few(kind: str, folder: Path, n: int) -> images.ImageSet:
    make_images(KINDS[kind], folder, n, seed=0)
    return images.ImageSet(KINDS[kind], str(folder / "shards"), str(folder / "files"), n // 8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_all_streams_make_the_same_pixels(kind: str, tmp_path: Path) -> None:
    image_set = few(kind, tmp_path, 16)
    size = image_set.kind.resolution
    epochs: dict[str, np.ndarray] = {}
    for name, stream in images.STREAMS.items():
        batches = list(itertools.islice(stream(image_set, 0), 8))
        assert {batch.shape for batch in batches} == {(2, 3, size, size)}
        epochs[name] = np.concatenate([np.asarray(batch) for batch in batches]).astype(int)
    gc.collect()
    for name in ("webdataset", "ImageFolder"):
        difference = np.abs(epochs["ours"][:, None] - epochs[name][None])
        same = difference.max((2, 3, 4)) <= (2 if image_set.kind.resized else 0)  # PIL's resize, and torch's
        assert (same.sum(0) == 1).all()
        assert (same.sum(1) == 1).all()
        assert (difference[same] > 0).mean() < 0.01


def test_each_kind_and_number_of_workers_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n", "16", "--batch", "2", "--rounds", "1", "--seconds", "0.01"]
    images.main([*few, "--kinds", "png", "--workers", "0", "2", "--dir", str(tmp_path)])
    gc.collect()
    result = table_rows(capsys.readouterr().out)
    assert [row["workers"] for row in result] == ["0", "2"]
    for row in result:
        assert all(float(row[name].removesuffix(" us")) > 0 for name in ("read", "decode, resize"))
        for name in ("limit", "webdataset", "ImageFolder"):
            ratio = float(row["ours"].removesuffix("/s")) / float(row[name].removesuffix("/s"))
            assert float(row[f"ours/{name}"]) == pytest.approx(ratio, rel=0.02, abs=0.01)
