from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from diffpipe.data import labels, load
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.labels import read_labels
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import by_bytes, write_folder, write_zip
from tests.support.tars import png, random_pixels

FILES = {
    "cat/1.png": png(random_pixels(1)),
    "cat/old/2.png": png(random_pixels(2)),
    "dog/1.png": png(random_pixels(3)),
    "dog/notes.txt": b"words",
}


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "a b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_packs_as_the_folder_does(tmp_path: Path, prefix: str, compression: int) -> None:
    pack(FolderSource(write_folder(tmp_path / "photos", FILES)), tmp_path / "a")
    hidden = {"__MACOSX/cat/._1.png": b"", f"{prefix}cat/.DS_Store": b""}
    archive = write_zip(tmp_path / "a.zip", {prefix + name: data for name, data in FILES.items()} | hidden, compression)
    source = FolderSource(archive)
    assert source.skipped == 1
    pack(source, tmp_path / "b")
    assert by_bytes(tmp_path / "a") == by_bytes(tmp_path / "b")
    assert load(str(tmp_path / "b")).classes == ["cat", "dog"]


def test_a_zip_archive_pickles_as_its_path(tmp_path: Path) -> None:
    source = FolderSource(write_zip(tmp_path / "a.zip", FILES))
    unpickled = pickle.loads(pickle.dumps(source))
    assert [unpickled.item(i).image for i in range(3)] == [source.item(i).image for i in range(3)]


def test_names_in_a_zip_archive_cannot_leave_it(tmp_path: Path) -> None:
    data = png(random_pixels(0))
    source = FolderSource(write_zip(tmp_path / "a.zip", {"../../cat/1.png": data, "/dog/1.png": data}))
    assert (source.names(), source.classes) == (["cat/1.png", "dog/1.png"], ["cat", "dog"])
    with pytest.raises(UserError, match=r"1\.png comes twice"):
        FolderSource(write_zip(tmp_path / "b.zip", {"../cat/1.png": data, "cat/1.png": data}))


def test_a_damaged_zip_archive_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(FILES["cat/old/2.png"]) + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip: cat/old/2\.png: cannot be read.*CRC"):
        FolderSource(path).item(1)
    path.write_bytes(data[:-30])
    with pytest.raises(UserError, match=r"a\.zip: not a whole zip"):
        FolderSource(path)
    bomb = write_zip(tmp_path / "bomb.zip", {"cat/1.png": b"\0" * 1000})
    data = bytearray(bomb.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 2**31)  # what the directory says that it holds
    bomb.write_bytes(data)
    with pytest.raises(UserError, match=r"1\.png: 2147483648 bytes, more than"):
        FolderSource(bomb).item(0)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_folder(tmp_path / "there", FILES)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "cat").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "there" / "cat" / "up").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "src" / "cat" / "3.png").symlink_to(tmp_path / "nowhere")
    source = FolderSource(tmp_path / "src")
    assert source.names() == ["cat/1.png", "cat/3.png", "cat/old/2.png"]
    with pytest.raises(UserError, match=r"cat/3\.png: no such file"):
        source.item(1)


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
    place = write_zip(tmp_path / "a.zip", FILES) if zipped else write_folder(tmp_path / "photos", FILES)
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
    folder = write_folder(tmp_path / "photos", FILES)
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
        ("a.csv", "path,label\na.png\n", r"a\.csv:2: 1 cells for 2"),
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
        FolderSource(write_folder(tmp_path / "photos", FILES), tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
