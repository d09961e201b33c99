"""The grid of moved images: the original first, then each strength, in its row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.evaluation.attributes import STRENGTHS, ClassPair, Moved
from diffpipe.report.attribute_grid import attribute_grid
from diffpipe.report.labelled_grid import LINE
from diffpipe.resolution import square
from tests.support.runs import indexed_shards


def test_each_row_is_an_original_and_its_moved_images(tmp_path: Path) -> None:
    shards = shard_set.load(indexed_shards(tmp_path / "shards", 12))
    pair = ClassPair(shards, 0, 2, {0: np.array([9, 3, 6]), 2: np.array([2, 5])})
    images = torch.arange(3 * len(STRENGTHS), dtype=torch.uint8).reshape(3, -1, 1, 1, 1).expand(-1, -1, 1, 8, 8)
    moved = Moved(images.contiguous(), [0.0] * len(STRENGTHS), (0.0, 1.0))
    picture = np.asarray(attribute_grid(pair, moved, rows=2, title="coder, step 2").convert("L"))
    cell = 8 * 8 + 2
    assert picture.shape[0] == 2 * LINE + 2 * cell
    left = (picture.shape[1] - (1 + len(STRENGTHS)) * cell) // 2
    originals = sequential_reader.images(shards, [9, 3], square(8), 1)
    for row in range(2):
        cells = picture[2 * LINE + row * cell :][1 : cell - 1, left:]
        first = cells[4::8, 5 : cell - 1 : 8]
        assert np.array_equal(first, originals[row, 0].numpy())
        for k in range(len(STRENGTHS)):
            assert (cells[:, (k + 1) * cell + 1 : (k + 2) * cell - 1] == images[row, k, 0, 0, 0].item()).all()
