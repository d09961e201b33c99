"""The kind of a source follows from what is at its path, and an option of another kind is refused."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.open_source import describe_labels, open_source, unpacked_files
from diffpipe.data.packing.shards import ShardSource
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_shards


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes(png(random_pixels(0)))
    return tmp_path / "photos"


def test_folders_and_archives_are_folder_sources(pets: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in pets.rglob("*.png"):
            archive.write(path, path.relative_to(pets))
    for path in (pets, tmp_path / "photos.zip"):
        source = open_source(str(path))
        assert isinstance(source, FolderSource)
        assert (len(source), source.classes) == (2, ["cat", "dog"])
        assert unpacked_files(source, []) == []


def test_files_that_are_not_packed_are_counted(pets: Path, tmp_path: Path) -> None:
    (pets / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text("cat/0.png,0")
    source = open_source(str(pets), labels_file=tmp_path / "labels.csv")
    assert unpacked_files(source, ["bad"]) == [
        "skipped 1 file that is no image by its name",
        f"skipped 1 image that {tmp_path / 'labels.csv'} does not name",
        "skipped 1 bad sample",
    ]


def test_the_labels_of_classes_are_said_by_name(pets: Path, tmp_path: Path) -> None:
    assert describe_labels(open_source(str(pets))) == "labels: 0: cat, 1: dog"
    (tmp_path / "labels.csv").write_text("cat/0.png,0")
    assert describe_labels(open_source(str(pets), labels_file=tmp_path / "labels.csv")) is None
    assert describe_labels(open_source(str(pets / "cat"))) is None
    (pets / "x.png").write_bytes((pets / "cat" / "0.png").read_bytes())
    source = open_source(str(pets), skip_stray=True)
    assert unpacked_files(source, []) == ["skipped 1 image beside the class folders and empty class folders: x.png"]
    for i in range(120):
        (tmp_path / "many" / f"{i}").mkdir(parents=True)
        (tmp_path / "many" / f"{i}" / "x.png").write_bytes((pets / "cat" / "0.png").read_bytes())
    said = describe_labels(open_source(str(tmp_path / "many")))
    assert said is not None
    assert said.endswith("99: 99 and 20 more")


def test_shards_are_packed_again_once_they_have_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path, [3])
    with pytest.raises(UserError, match="holds tars without an index; run: diffpipe index"):
        open_source(str(tmp_path))
    write_index(tmp_path)
    assert isinstance(open_source(str(tmp_path)), ShardSource)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": Path("labels")},
            "--labels is for idx files, but SRC is none of these (image folders); leave it out",
        ),
        ({"split": "test"}, "--split is for folders of idx files, the CIFAR-10 archive"),
        ({"columns": ["image"]}, "--columns is for Hugging Face datasets, saved datasets"),
        ({"classes": ["cat"]}, "the classes of an image folder are its subfolders"),
    ],
)
def test_an_option_of_another_kind_is_refused(pets: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        open_source(str(pets), **options)


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/images", "https://host/a.zip?token=secret", "hf://datasets/a/b"]
)
def test_a_url_is_no_source_and_its_secrets_are_not_shown(url: str) -> None:
    with pytest.raises(UserError, match=r"^\w+://[\w/.]+: a URL, and images are packed from files here"):
        open_source(url)


def test_nothing_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(str(tmp_path / "missing"))


@pytest.mark.parametrize("name", ["a.zip", "a-idx3-ubyte", "a.tar.gz", "a.npz"])
def test_a_fifo_is_neither_a_file_nor_a_folder(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize(("text", "warned"), [('{"labels": [[', True), ("{}", True), ('{"labels": null}', False)])
def test_a_dataset_json_that_cannot_be_used_is_warned_of(pets: Path, text: str, warned: bool) -> None:
    (pets / "dataset.json").write_text(text)
    source = open_source(str(pets))
    notes = [note for note in unpacked_files(source, []) if note.startswith("warning: dataset.json is not used")]
    assert len(notes) == warned
    assert all("the folders are the classes" in note and "--labels-file" in note for note in notes)
