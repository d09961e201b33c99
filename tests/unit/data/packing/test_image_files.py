"""The images of folders, archives and arrays: which files they are, and the places that hold none."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.image_files import open_image_files
from diffpipe.errors import UserError


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)


def names(place: Path) -> list[str]:
    files = open_image_files(str(place))
    return [files.name(i) for i in range(len(files))]


def test_nested_folders_and_zips_give_the_images_that_pack_takes(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    kept = ["b/1.webp", "a/deep/2.png", "loose.bmp", "x.tif"]
    for i, name in enumerate(kept):
        save(folder / name, i)
    for left_out in ("._loose.bmp", ".hidden/3.png", "__MACOSX/4.png", "notes.txt"):
        (folder / left_out).parent.mkdir(exist_ok=True)
        (folder / left_out).write_bytes(b"\0\5\x16\7")
    assert names(folder) == sorted(kept, key=lambda name: name.split("/"))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, f"images/{file.relative_to(folder)}")
    assert names(tmp_path / "images.zip") == names(folder)


def test_the_grid_beside_samples_is_no_image_of_the_set_but_another_grid_is(tmp_path: Path) -> None:
    for name in ("000000.png", "000001.png", "grid.png", "trajectory.png", "class/grid.png"):
        save(tmp_path / "samples" / name)
    assert names(tmp_path / "samples") == ["000000.png", "000001.png", "class/grid.png"]
    for name in ("fence.png", "grid.png"):
        save(tmp_path / "photos" / name)
    assert names(tmp_path / "photos") == FolderSource(tmp_path / "photos").paths == ["fence.png", "grid.png"]


def test_an_npz_has_the_pixels_of_its_array(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=array, arr_1=np.arange(3))
    files = open_image_files(str(tmp_path / "images.npz"))
    (tmp_path / "image.png").write_bytes(files.encoded(2)[1])
    assert len(files) == 3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), array[2])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(4), "sigma": np.zeros((4, 4))}, "it holds mu, sigma and no images; statistics are not enough"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, r"its arr_0 is float32 \[2, 4, 4, 3\]; images are uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "it has no images"),
        ({"arr_0": np.array([None])}, "not a readable npz file"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=message):
        open_image_files(str(tmp_path / "a.npz"))


def test_a_place_without_images_says_so_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("empty", "empty.zip"):
        with pytest.raises(UserError, match=f"{name}: it has no images; give a folder or an archive"):
            open_image_files(str(tmp_path / name))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(UserError, match="not a readable npz file"):
        open_image_files(str(tmp_path / "text.npz"))


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


def _header(shape: str) -> str:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "member",
    [
        _npy(_header("(9223372036854775807999, 8, 8, 3)")),
        _npy(_header("(True, 8, 8, 3)"), bytes(192)),
        _npy(_header("(5, 0, 8, 3)")),
        _npy(_header("((((((")),
        _npy("(" * 9000),
        b"hello",
    ],
)
def test_an_npz_that_numpy_does_not_write_is_refused(tmp_path: Path, member: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", member)
    with pytest.raises(UserError, match=r"a\.npz: (not a readable npz file|its arr_0 is)"):
        open_image_files(str(tmp_path / "a.npz"))


def test_a_single_array_a_bomb_and_a_fifo_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "array.npz").write_bytes(_npy(_header("(1, 8, 8, 3)"), bytes(192)))
    with pytest.raises(UserError, match="it is a single array"):
        open_image_files(str(tmp_path / "array.npz"))
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", _npy(_header("(30000, 256, 256)"), bytes(1 << 20)))
    size = zipfile.ZipFile(path).infolist()[0].file_size
    path.write_bytes(path.read_bytes().replace(size.to_bytes(4, "little"), (30000 << 16).to_bytes(4, "little")))
    with pytest.raises(UserError, match="bytes hold 1966080000, more than images compress to"):
        open_image_files(str(path))
    os.mkfifo(tmp_path / "fifo.npz")
    with pytest.raises(UserError, match="not a readable npz file"):
        open_image_files(str(tmp_path / "fifo.npz"))
