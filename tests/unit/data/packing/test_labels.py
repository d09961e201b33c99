"""Labels files: the forms that are read, and the error where a row is invalid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffpipe.data import labels, load
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.labels import read_labels
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import PHOTOS, write_folder, write_zip

ROWS = {
    "a.csv": "path,label,who\ncat/1.png,tabby,ann\ncat/old/2.png,black,bob\ndog/1.png,tabby,ann\n",
    "b.csv": "cat/1.png,tabby\r\n./cat/old/2.png,black\r\n\r\ndog/1.png,tabby\r\n",
    "c.tsv": "who\tfile_name\tclass\nann\tcat/1.png\ttabby\nbob\tcat/old/2.png\tblack\nann\tdog/1.png\ttabby\n",
    "d.jsonl": '{"file_name": "cat/1.png", "label": "tabby"}\n{"path": "cat/old/2.png", "label": "black"}\n'
    '{"path": "dog/1.png", "label": "tabby", "box": [1, 2]}\n',
    "e.txt": "dog/1.png tabby\ncat/1.png  tabby\n\ncat/old/2.png\tblack\n",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_labels_file_gives_the_classes(tmp_path: Path, name: str, zipped: bool) -> None:
    place = write_zip(tmp_path / "a.zip", PHOTOS) if zipped else write_folder(tmp_path / "photos", PHOTOS)
    (tmp_path / name).write_text("\ufeff" + ROWS[name], encoding="utf-8")
    source = FolderSource(place, tmp_path / name)
    assert source.names() == ["cat/1.png", "cat/old/2.png", "dog/1.png"]
    assert (source.labels, source.classes, source.unlabelled) == ([1, 0, 1], ["black", "tabby"], 0)
    asked = FolderSource(place, tmp_path / name, ["tabby", "white", "black"])
    assert (asked.labels, asked.classes) == ([0, 2, 0], ["tabby", "white", "black"])
    if "who" in ROWS[name]:
        assert source.column("who") == ["ann", "bob", "ann"]
    with pytest.raises(UserError, match="no column 'age'"):
        source.column("age")
    with pytest.raises(UserError, match="'black', which --classes does not name"):
        FolderSource(place, tmp_path / name, ["tabby"])


def test_numbers_in_a_labels_file_are_the_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", PHOTOS)
    file = tmp_path / "labels.txt"
    file.write_text("cat/1.png 7\ndog/1.png 2\n")
    source = FolderSource(folder, file)
    assert (source.labels, source.classes, source.unlabelled) == ([7, 2], None, 1)
    assert FolderSource(folder, file, list("abcdefgh")).classes == list("abcdefgh")
    with pytest.raises(UserError, match="a label is 7, but there are only 3 class names"):
        FolderSource(folder, file, list("abc"))
    file.write_text("cat/1.png 7\ncat/3.png 2\n")
    assert pack(FolderSource(folder, file), tmp_path / "out", max_bad_samples=1) == [
        f"{folder}/cat/3.png: no such file; correct the path, or remove its row"
    ]
    assert labels(load(str(tmp_path / "out")), [0]).tolist() == [7]


@pytest.mark.parametrize(
    ("name", "text", "about"),
    [
        ("a.csv", "path,label\na.png\n", r"a\.csv:2: 1 cell for 2"),
        ("a.csv", "path,who\na.png,ann\n", r"a\.csv:2: no label"),
        ("a.csv", "a.png,1\na.png,2\n", r"a\.csv:2: a\.png is named twice"),
        ("a.csv", "../a.png,1\n", "'../a.png' is not a relative path"),
        ("a.csv", "/a.png,1\n", "is not a relative path"),
        ("a.csv", "", "no rows"),
        ("a.txt", "a.png\n", r"a\.txt:1: no label"),
        ("a.jsonl", '{"path": "a.png", "label": 1}\n{"path"\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"path": "a.png", "label": null}\n', r"a\.jsonl:1: no label"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: not an object"),
        ("a.txt", "x.png 1\n", "names none of the 3 images"),
    ],
)
def test_an_invalid_labels_file_is_named(tmp_path: Path, name: str, text: str, about: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=about):
        FolderSource(write_folder(tmp_path / "photos", PHOTOS), tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    for name in ("labels.csv", "endless.csv"):
        with pytest.raises(UserError, match=r"\.csv: cannot be read \(.*not a regular file"):
            read_labels(tmp_path / name)
    (tmp_path / "labels.jsonl").write_text('{"path": "a.png", "label": ' + "[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_labels(tmp_path / "labels.jsonl")
