"""Images of folders and archives: the same pixels as those of shards packed from them, and a fingerprint."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffpipe.data.index import shard_set
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.evaluation.file_images import FileImages
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.resolution import Resolution, square


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7), seed: int = 0, **options: Any) -> None:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path, **options)


@pytest.mark.parametrize(("channels", "resolution"), [(3, None), (1, None), (3, square(5)), (1, Resolution(5, 6))])
def test_a_folder_a_zip_an_npz_and_shards_give_the_same_pixels(
    tmp_path: Path, channels: int, resolution: Resolution | None
) -> None:
    folder = tmp_path / "images"
    save(folder / "alpha.png", "RGBA", seed=1)
    save(folder / "grey.png", "L", seed=2)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(folder / "rotated.jpg", size=(7, 9), seed=3, exif=rotated)
    Image.fromarray(np.full((7, 9), 40000, np.uint16)).save(folder / "wide.png")
    pack(FolderSource(folder), tmp_path / "shards")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    shards = ShardImages(shard_set.load(str(tmp_path / "shards")), channels, resolution)
    expected = {x.numpy().tobytes() for x in shards.images(range(4))}
    assert shards.size == ((7, 9) if resolution is None else resolution)
    sources = [
        FileImages(str(folder), channels, resolution),
        FileImages(str(tmp_path / "images.zip"), channels, resolution),
    ]
    for source in sources:
        assert {x.numpy().tobytes() for x in source.images(range(4))} == expected
        assert source.size == shards.size
    colour = FileImages(str(folder), 3, None).images(range(4))
    np.savez(tmp_path / "images.npz", colour.permute(0, 2, 3, 1).numpy())
    array = FileImages(str(tmp_path / "images.npz"), 3, resolution)
    assert torch.equal(array.images(range(4)), FileImages(str(folder), 3, resolution).images(range(4)))


def test_the_protocol_says_the_size_and_the_resize(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert (
        FileImages(str(tmp_path), 3, None).describe().items()
        >= {"channels": 3, "size": [7, 9], "resize": "none"}.items()
    )
    described = FileImages(str(tmp_path), 1, square(5)).describe()
    assert (described["channels"], described["size"]) == (1, [5, 5])
    assert described["resize"].startswith("shorter side to this size, bicubic")


def test_the_fingerprint_follows_names_and_contents_but_not_the_place(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        save(tmp_path / folder / "a.png", seed=1)
        save(tmp_path / folder / "b.png", seed=3 if folder == "z" else 2)
    x, y, z = (FileImages(str(tmp_path / folder), 3, None).describe()["fingerprint"] for folder in "xyz")
    assert x == y != z
    (tmp_path / "y" / "b.png").rename(tmp_path / "y" / "c.png")
    assert FileImages(str(tmp_path / "y"), 3, None).describe()["fingerprint"] != x


def test_n_images_are_drawn_as_those_of_shards_are(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.png", seed=i)
    drawn = FileImages(str(tmp_path), 3, None, n=3)
    assert (drawn.n, drawn.describe()["drawn_by_seed"]) == (3, 0)
    assert len({x.numpy().tobytes() for x in drawn.images(range(3))}) == 3
    with pytest.raises(UserError, match="holds 6 images, fewer than 7; give a smaller n"):
        FileImages(str(tmp_path), 3, None, n=7)


def test_an_image_of_another_size_is_refused_in_whichever_chunk_it_lies(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / f"{i}.png", size=(9, 7) if i < 3 else (9, 8))
    with pytest.raises(
        UserError, match=r"8x9 pixels \(height x width\) and the images before it 7x9; pack them with --resolution"
    ):
        FileImages(str(tmp_path), 3, None).images(range(3, 4))


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_below_one_is_refused(tmp_path: Path, n: int) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"n is {n}; give 1 or more images"):
        FileImages(str(tmp_path), 1, None, n=n)
