"""Archives for StyleGAN's and EDM's code: their loader reads them, and `pack` reads them back."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import load
from diffpipe.data.packing.edm_zip import pack_edm_zip
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.errors import UserError
from diffpipe.resolution import Resolution, square
from tests.support.tars import png, random_pixels


def read_as_edm_does(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images [n c h w] and the labels, by the steps of ImageFolderDataset in EDM's training/dataset.py."""
    Image.init()
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if Path(name).suffix.lower() in Image.EXTENSION)
        images = []
        for name in names:
            image = np.array(Image.open(io.BytesIO(archive.read(name))))
            images.append((image[:, :, np.newaxis] if image.ndim == 2 else image).transpose(2, 0, 1))
        rows = json.loads(archive.read("dataset.json"))["labels"]
    if rows is None:
        return np.stack(images), None
    labels = dict(rows)
    return np.stack(images), np.array([labels[name.replace("\\", "/")] for name in names]).astype(np.int64)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for i in range(7):
        path = tmp_path / "pets" / ("dog" if i % 3 else "cat") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random_pixels(i, (8, 8, 3))))
    return tmp_path / "pets"


def test_the_loader_of_edm_reads_the_images_and_labels(pets: Path, tmp_path: Path) -> None:
    source = FolderSource(pets)
    line, bad = pack_edm_zip(source, tmp_path / "new" / "a.zip", workers=2)
    assert (line, bad) == (f"{tmp_path}/new/a.zip: 7 images of 8 x 8 pixels, mode RGB", [])
    images, labels = read_as_edm_does(tmp_path / "new" / "a.zip")
    assert labels is not None
    assert labels.tolist() == source.labels
    expected = [np.array(Image.open(pets / path)).transpose(2, 0, 1) for path in source.paths]
    assert np.array_equal(images, np.stack(expected))
    pack_edm_zip(source, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "new" / "a.zip").read_bytes()


def test_what_is_written_is_packed_with_the_same_labels(pets: Path, tmp_path: Path) -> None:
    pack(FolderSource(pets), tmp_path / "shards")
    source = ShardSource(load(str(tmp_path / "shards")))
    pack_edm_zip(source, tmp_path / "a.zip")
    again = FolderSource(tmp_path / "a.zip")
    assert again.labels == source.labels
    assert again.labels_file == f"{tmp_path}/a.zip: dataset.json"
    assert again.skipped == 0


def test_images_without_labels_have_none_in_the_archive(pets: Path, tmp_path: Path) -> None:
    pack_edm_zip(FolderSource(pets / "dog"), tmp_path / "a.zip", encoding=Encoding(resolution=square(4)))
    images, labels = read_as_edm_does(tmp_path / "a.zip")
    assert (images.shape, labels) == ((4, 3, 4, 4), None)
    assert FolderSource(tmp_path / "a.zip").labels is None


def test_images_that_the_loader_would_fail_on_are_refused(pets: Path, tmp_path: Path) -> None:
    (pets / "dog" / "9.png").write_bytes(png(random_pixels(9, (8, 9, 3))))
    with pytest.raises(UserError, match=r"--resolution 4x8: the archive holds square images; give one side"):
        pack_edm_zip(FolderSource(tmp_path), tmp_path / "a.zip", encoding=Encoding(resolution=Resolution(4, 8)))
    with pytest.raises(UserError, match=r"9 x 8 pixels .*--resolution"):
        pack_edm_zip(FolderSource(pets), tmp_path / "a.zip")
    (pets / "dog" / "9.png").write_bytes(png(random_pixels(9, (8, 8))))
    with pytest.raises(UserError, match="mode L"):
        pack_edm_zip(FolderSource(pets), tmp_path / "a.zip")
    with pytest.raises(UserError, match="--format webp"):
        pack_edm_zip(FolderSource(pets), tmp_path / "a.zip", encoding=Encoding(format="webp"))
    assert list(tmp_path.iterdir()) == [pets]
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match="exists already"):
        pack_edm_zip(FolderSource(pets), tmp_path / "a.zip")
