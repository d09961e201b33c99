"""Image folders: their files and classes, and folders that cannot be packed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import load, number_of_classes
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import write_zip
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


def images_at(root: Path, *paths: str) -> Path:
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(random_pixels(i)))
    return root


def test_class_folders_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    """Folder 10 of 0 to 10 has label 10, as a labels file with these numbers gives it, and not label 2."""
    source = FolderSource(images_at(tmp_path / "a", *(f"{i}/x.png" for i in range(11))))
    assert source.classes == [str(i) for i in range(11)]
    assert dict(zip(source.paths, source.labels or [], strict=True))["10/x.png"] == 10
    mixed = FolderSource(images_at(tmp_path / "b", "1/x.png", "10/x.png", "2/x.png", "a/x.png"))
    assert mixed.classes == ["1", "10", "2", "a"]
    padded = FolderSource(images_at(tmp_path / "c", "007/x.png", "7/x.png", "10/x.png"))
    assert padded.classes == ["007", "7", "10"]


def test_stray_images_and_empty_class_folders_are_left_out_on_request(folder: Path) -> None:
    images_at(folder, *(f"stray{i}.png" for i in range(7)))
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"stray0\.png, .*stray4\.png and 2 more; .*--skip-stray"):
        FolderSource(folder)
    source = FolderSource(folder, skip_stray=True)
    assert source.classes == ["ant", "bee", "cat"]
    assert source.stray == [*(f"stray{i}.png" for i in range(7)), "cow/"]
    assert len(source) == len(source.labels or []) == 6
    alone = FolderSource(images_at(folder.parent / "flat", "a.png", "b.png"), skip_stray=True)
    assert (alone.paths, alone.labels, alone.stray) == (["a.png", "b.png"], None, [])


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_labels_of_dataset_tool_are_read_and_its_chunks_are_no_classes(tmp_path: Path, as_zip: bool) -> None:
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(8)]
    labels = [i * 3 % 5 for i in range(8)]
    root = images_at(tmp_path / "ds", *names)
    for rows, expected in ((list(zip(names, labels, strict=True)), labels), (None, None)):
        (root / "dataset.json").write_text(json.dumps({"labels": rows}))
        if as_zip:
            files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
            source = FolderSource(write_zip(tmp_path / "ds.zip", files))
        else:
            source = FolderSource(root)
        assert (source.labels, source.classes) == (expected, None)
    (root / "dataset.json").write_text("{}")  # another tool's: the folders are classes
    assert FolderSource(root).classes == ["00000", "00001"]


def test_a_labels_file_of_windows_names_images_by_backslashes(tmp_path: Path) -> None:
    root = images_at(tmp_path / "src", "cat/1.png", "dog/2.png")
    (tmp_path / "labels.csv").write_text("cat\\1.png,0\ndog\\2.png,1\n")
    source = FolderSource(root, tmp_path / "labels.csv")
    assert (source.paths, source.labels) == (["cat/1.png", "dog/2.png"], [0, 1])
