"""Files in a folder or a zip archive: read in place, links followed, damage named."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from diffpipe.data import load
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.tree import Folder, Zip
from diffpipe.errors import UserError
from tests.support.archives import PHOTOS, by_bytes, write_folder, write_zip
from tests.support.tars import png, random_pixels


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "a b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_packs_as_the_folder_does(tmp_path: Path, prefix: str, compression: int) -> None:
    pack(FolderSource(write_folder(tmp_path / "photos", PHOTOS)), tmp_path / "a")
    hidden = {"__MACOSX/cat/._1.png": b"", f"{prefix}cat/.DS_Store": b""}
    archive = write_zip(
        tmp_path / "a.zip", {prefix + name: data for name, data in PHOTOS.items()} | hidden, compression
    )
    source = FolderSource(archive)
    assert source.skipped == 1
    pack(source, tmp_path / "b")
    assert by_bytes(tmp_path / "a") == by_bytes(tmp_path / "b")
    assert load(str(tmp_path / "b")).classes == ["cat", "dog"]


def test_a_zip_archive_pickles_as_its_path(tmp_path: Path) -> None:
    source = FolderSource(write_zip(tmp_path / "a.zip", PHOTOS))
    unpickled = pickle.loads(pickle.dumps(source))
    assert [unpickled.item(i).image for i in range(3)] == [source.item(i).image for i in range(3)]


def test_names_in_a_zip_archive_cannot_leave_it(tmp_path: Path) -> None:
    data = png(random_pixels(0))
    source = FolderSource(write_zip(tmp_path / "a.zip", {"../../cat/1.png": data, "/dog/1.png": data}))
    assert (source.names(), source.classes) == (["cat/1.png", "dog/1.png"], ["cat", "dog"])
    with pytest.raises(UserError, match=r"1\.png comes twice"):
        FolderSource(write_zip(tmp_path / "b.zip", {"../cat/1.png": data, "cat/1.png": data}))


def test_a_damaged_zip_archive_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", PHOTOS, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(PHOTOS["cat/old/2.png"]) + 60] ^= 1
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
    write_folder(tmp_path / "there", PHOTOS)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "cat").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "there" / "cat" / "up").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "src" / "cat" / "3.png").symlink_to(tmp_path / "nowhere")
    source = FolderSource(tmp_path / "src")
    assert source.names() == ["cat/1.png", "cat/3.png", "cat/old/2.png"]
    with pytest.raises(UserError, match=r"cat/3\.png: no such file"):
        source.item(1)


def test_backslashes_in_the_names_of_an_archive_are_folders(tmp_path: Path) -> None:
    data = png(random_pixels(0))
    source = FolderSource(
        write_zip(tmp_path / "a.zip", {"a\\cat\\1.png": data, "a\\dog\\": b"", "a\\dog\\2.png": data})
    )
    assert (source.paths, source.classes, source.labels) == (["cat/1.png", "dog/2.png"], ["cat", "dog"], [0, 1])
    assert source.item(1).image == data
    with pytest.raises(UserError, match="twice"):
        FolderSource(write_zip(tmp_path / "b.zip", {"cat\\1.png": data, "cat/1.png": data}))


def _patched(path: Path, at: int, value: int) -> Path:
    """The archive with two bytes of its directory's first entry changed."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + at, value)
    path.write_bytes(data)
    return path


def test_an_archive_of_another_version_or_with_a_broken_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.zip: not a whole zip archive \(zip file version 9\.9\)"):
        Zip(_patched(write_zip(tmp_path / "a.zip", PHOTOS), 6, 99))
    path = write_zip(tmp_path / "b.zip", {"é.png": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(UserError, match=r"b\.zip: not a whole zip archive"):
        Zip(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_a_bound_is_refused(tmp_path: Path, compression: int) -> None:
    tree = Zip(write_zip(tmp_path / "a.zip", {"1.png": bytes(1 << 20)}, compression))
    with pytest.raises(UserError, match="of which a few bytes may hold gigabytes; write the archive again"):
        tree.read("1.png")


def test_no_more_is_decompressed_than_the_archive_says(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 200 << 20), struct.pack("<I", 1000)))
    tree = Zip(path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="cannot be read"):
            tree.read("1.png")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_names_with_control_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.zip: '\\x1b\]0;x\\x07/1\.png': the name has control characters"):
        Zip(write_zip(tmp_path / "a.zip", {"\x1b]0;x\x07/1.png": b"x"}))
    write_folder(tmp_path / "photos", {"cat\n\x1b[31m/1.png": b"x"})
    with pytest.raises(UserError, match=r"photos: 'cat\\n\\x1b\[31m': the name has control characters"):
        Folder(tmp_path / "photos")


def test_a_fifo_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(UserError, match="not a whole zip archive"):
        Zip(tmp_path / "a.zip")
