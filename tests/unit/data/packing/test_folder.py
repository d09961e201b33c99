"""Image folders: their files and classes, and folders that cannot be packed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import load, number_of_classes
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels


def test_a_folder_keeps_its_files_and_its_classes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = FolderSource(folder)
    assert source.skipped == 1
    pack(source, out, shard_samples=4, prefix="train")
    shards = load(f"{out}/train-{{000000..000001}}.tar")
    assert shards.counts.tolist() == [4, 2]
    assert shards.classes == ["ant", "bee", "cat"]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() not in ("", ".txt") and path.is_file())
    rows = {}
    for shard, path in enumerate(shards.paths):
        data = Path(path).read_bytes()
        for i in range(int(shards.counts[shard])):
            key, members = shards.sample(shard, i)
            rows[int(key)] = {e: data[m.offset : m.offset + m.size] for e, m in members.items()}
    assert sorted(rows) == list(range(6))
    for i, path in enumerate(files):
        name = path.relative_to(folder).parts[0]
        assert rows[i].pop("cls") == str(["ant", "bee", "cat"].index(name)).encode()
        ((extension, data),) = rows[i].items()
        if path.suffix == ".bmp":
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(Image.open(path)))
            assert extension == "png"
        else:
            assert data == path.read_bytes()
            assert extension == {".jpeg": "jpg"}.get(path.suffix, path.suffix[1:].lower())


def test_images_directly_in_a_folder_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / "src" / f"{i}.png").write_bytes(png(random_pixels(i)))
    pack(FolderSource(tmp_path / "src"), tmp_path / "out")
    shards = load(str(tmp_path / "out"))
    assert (shards.total, shards.classes, shards.has("cls"), number_of_classes(shards)) == (3, None, False, 0)


def test_folders_that_cannot_be_packed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void: no images"):
        FolderSource(tmp_path / "void")
    (folder / "cow").mkdir()
    with pytest.raises(UserError, match="cow: a class without images"):
        FolderSource(folder)
    (folder / "cow").rmdir()
    (folder / "stray.png").write_bytes(png(random_pixels(0)))
    with pytest.raises(UserError, match=r"stray\.png"):
        FolderSource(folder)
