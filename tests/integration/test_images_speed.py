"""What eval/speed/images.py compares is the same images, and each of its figures has its place."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import numpy as np
import pytest

from eval.speed import images
from eval.speed.noise import KINDS, make
from tests.support.markdown_tables import table_rows

# webdataset leaves the shard open that it is not read to its end
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def few(kind: str, folder: Path, n: int) -> images.Subject:
    make(KINDS[kind], folder, n, seed=0)
    return images.Subject(KINDS[kind], str(folder / "shards"), str(folder / "files"), n // 8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_all_streams_make_the_same_pixels(kind: str, tmp_path: Path) -> None:
    subject = few(kind, tmp_path, 16)
    size = subject.kind.resolution
    epochs: dict[str, np.ndarray] = {}
    for name, stream in images.STREAMS.items():
        batches = list(itertools.islice(stream(subject, 0), 8))
        assert {batch.shape for batch in batches} == {(2, 3, size, size)}
        epochs[name] = np.concatenate([np.asarray(batch) for batch in batches]).astype(int)
    gc.collect()
    for name in ("webdataset", "ImageFolder"):
        off = np.abs(epochs["ours"][:, None] - epochs[name][None])
        same = off.max((2, 3, 4)) <= (2 if subject.kind.resized else 0)  # PIL's resize, and torch's
        assert (same.sum(0) == 1).all()
        assert (same.sum(1) == 1).all()
        assert (off[same] > 0).mean() < 0.01


def test_each_kind_and_number_of_workers_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n", "16", "--batch", "2", "--rounds", "1", "--seconds", "0.01"]
    images.main([*few, "--kinds", "png", "--workers", "0", "2", "--dir", str(tmp_path)])
    gc.collect()
    found = table_rows(capsys.readouterr().out)
    assert [row["workers"] for row in found] == ["0", "2"]
    for row in found:
        assert all(float(row[name].removesuffix(" us")) > 0 for name in ("read", "decode, resize"))
        for name in ("limit", "webdataset", "ImageFolder"):
            ratio = float(row["ours"].removesuffix("/s")) / float(row[name].removesuffix("/s"))
            assert float(row[f"ours/{name}"]) == pytest.approx(ratio, rel=0.02, abs=0.01)
