"""A folder of images against PIL's pixels, and the folders that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.metrics.folder import FolderImages


def save(folder: Path, name: str, mode: str = "L", size: tuple[int, int] = (6, 5), seed: int = 0) -> np.ndarray:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / name)
    return array


def test_a_folders_images_come_by_name_and_index(tmp_path: Path) -> None:
    arrays = {name: save(tmp_path, name, seed=i) for i, name in enumerate(["b.png", "a.png", "c.PNG"])}
    (tmp_path / "notes.txt").write_text("not an image")
    source = FolderImages(tmp_path)
    assert source.n == 3
    expected = np.stack([arrays[name] for name in ("a.png", "b.png", "c.PNG")])[:, None]
    assert torch.equal(source.images(range(3)), torch.from_numpy(expected))
    assert torch.equal(source.images(range(1, 2)), torch.from_numpy(expected[1:2]))


def test_one_coloured_image_makes_the_folder_rgb(tmp_path: Path) -> None:
    gray, colour = save(tmp_path, "a.png"), save(tmp_path, "b.png", "RGB")
    x = FolderImages(tmp_path).images(range(2)).numpy()
    assert np.array_equal(x[0], np.broadcast_to(gray, (3, 5, 6)))
    assert np.array_equal(x[1], colour.transpose(2, 0, 1))


def test_the_fingerprint_follows_names_and_contents_but_not_the_place(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        save(tmp_path / folder, "a.png", seed=1)
        save(tmp_path / folder, "b.png", seed=3 if folder == "z" else 2)
    x, y, z = (FolderImages(tmp_path / folder).describe()["fingerprint"] for folder in "xyz")
    assert x == y != z
    (tmp_path / "y" / "b.png").rename(tmp_path / "y" / "c.png")
    assert FolderImages(tmp_path / "y").describe()["fingerprint"] != x
    assert (
        FolderImages(tmp_path / "x", n=1).describe()["fingerprint"]
        == FolderImages(tmp_path / "z", 1).describe()["fingerprint"]
    )


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        FolderImages(tmp_path / "absent")
    with pytest.raises(UserError, match="holds 0 PNG or JPEG images"):
        FolderImages(tmp_path)
    save(tmp_path, "a.png")
    with pytest.raises(UserError, match="holds 1 PNG or JPEG images and 2 are asked for"):
        FolderImages(tmp_path, n=2)
    save(tmp_path, "b.png", size=(7, 5))
    with pytest.raises(UserError, match=r"b\.png is .*one size"):
        FolderImages(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: cannot read it as an image"):
        FolderImages(tmp_path)
    Image.fromarray(np.zeros((5, 6), dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        FolderImages(tmp_path)


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    save(tmp_path, "a.png", size=(64, 64))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    source = FolderImages(tmp_path)
    with pytest.raises(UserError, match=r"a\.png: cannot read it as an image"):
        source.images(range(1))
