"""The forms of a packed source: what is written, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack_as import pack_as
from diffpipe.errors import UserError

OPTIONS = {"shard_samples": 2, "prefix": "s", "seed": 0, "workers": 0, "max_bad_samples": 1}


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    for i, name in enumerate(("cat/a", "cat/b", "dog/c")):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "pets" / f"{name}.png")
    (tmp_path / "pets" / "dog" / "bad.png").write_bytes(b"")
    return FolderSource(tmp_path / "pets")


def test_shards_and_an_archive_hold_the_same_images(source: FolderSource, tmp_path: Path) -> None:
    summaries, notes, bad = pack_as("shards", source, tmp_path / "shards", encoding=Encoding(), split=None, **OPTIONS)
    assert "3 samples" in str(summaries[0])
    assert notes[0] == "labels: 0: cat, 1: dog"
    assert len(bad) == 1
    summary, notes, bad = pack_as("edm-zip", source, tmp_path / "all.zip", encoding=Encoding(), split=None, **OPTIONS)
    assert summary == f"{tmp_path}/all.zip: 3 images of 4 x 4 pixels, mode L"
    assert notes[0] == "labels: 0: cat, 1: dog"
    assert len(bad) == 1


def test_an_archive_cannot_be_split(source: FolderSource, tmp_path: Path) -> None:
    split = Split("group", 0.5)
    with pytest.raises(UserError, match="--split-by writes shards; pack each part into a zip of its own"):
        pack_as("edm-zip", source, tmp_path / "all.zip", encoding=Encoding(), split=split, **OPTIONS)
