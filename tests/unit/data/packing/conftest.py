"""Images to pack, in the forms that people have them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.archives import idx_bytes
from tests.support.tars import png, random_pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of coloured images in all kinds of files."""
    root = tmp_path / "pictures"
    for name, kinds in {
        "cat": ["a.png", "b.JPG", "x.y.webp"],
        "ant": ["z.png", "sub/z.bmp"],
        "bee": ["1.jpeg"],
    }.items():
        for i, kind in enumerate(kinds):
            path = root / name / kind
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_pixels(len(name + kind) + i, (10, 14, 3))).save(path)
    (root / "cat" / ".DS_Store").write_bytes(b"")
    (root / "cat" / "notes.txt").write_bytes(b"")
    return root


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Forty images in four classes, as idx files of both splits, one of them gzipped."""
    root = tmp_path / "idx"
    root.mkdir()
    for split, seed in (("train", 0), ("t10k", 1)):
        pixels = random_pixels(seed, (40, 6, 5))
        (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(40, dtype=np.uint8) % 4))
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty images of ten subjects in two classes; the seventh and the fortieth are broken."""
    for i in range(60):
        path = tmp_path / "photos" / f"{'cat' if i % 2 else 'dog'}" / f"subject{i % 10}_{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"<html>" if i in (7, 40) else png(random_pixels(i, (12, 9, 3))))
    return tmp_path / "photos"
