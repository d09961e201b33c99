"""Generated images as files: a PNG each, and a grid. A folder says which set it holds, and takes no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.samples import stated_shape, write_samples
from diffpipe.evaluation.score_sources import open_images
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(("classes", "n"), [(0, 5), (3, 110)])
def test_each_image_is_a_file_by_its_index_and_the_first_hundred_are_a_grid(
    classes: int, n: int, tmp_path: Path, runtime: Runtime
) -> None:
    source = GeneratedImages(Noise(), {}, ImageShape(1, square(8), classes), runtime, n=n, seed=0)
    write_samples(source, tmp_path / "some" / "out", runtime)
    images = source.images(range(n))
    files = sorted((tmp_path / "some" / "out").glob("0*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(n)]
    assert np.array_equal(np.stack([pixels(file) for file in files]), images[:, 0].numpy())
    expected = np.asarray(grid(images[:100], columns=classes or None))
    assert np.array_equal(pixels(tmp_path / "some" / "out" / "grid.png"), expected)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "out").touch()
    source = GeneratedImages(Noise(), {}, ImageShape(1, square(8)), runtime, n=2, seed=0)
    with pytest.raises(UserError, match="give a folder that can be written"):
        write_samples(source, tmp_path / "out", runtime)


def source(runtime: Runtime, n: int, seed: int = 0) -> GeneratedImages:
    return GeneratedImages(Noise(), {}, ImageShape(1, square(8), 3), runtime, n=n, seed=seed, about={"step": 7})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_says_how_its_images_were_made_and_can_be_scored(tmp_path: Path, runtime: Runtime) -> None:
    write_samples(source(runtime, 4), tmp_path, runtime)
    tree = json.loads((tmp_path / "samples.json").read_text())
    assert tree["n"] == 4
    assert tree["protocol"]["generated"].items() >= {"seed": 0, "step": 7, "size": [8, 8]}.items()
    assert stated_shape(str(tmp_path)) == (1, square(8))
    assert open_images(str(tmp_path), 1, None).n == 4


def test_another_set_is_refused_and_nothing_changes(tmp_path: Path, runtime: Runtime) -> None:
    write_samples(source(runtime, 6), tmp_path, runtime)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"already holds 6 images of another set \(with another seed\); give an empty"):
        write_samples(source(runtime, 3, seed=1), tmp_path, runtime)
    assert contents(tmp_path) == before


def test_images_of_unknown_origin_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "photo.JPG").write_bytes(b"")
    with pytest.raises(UserError, match="already holds 1 image of another set; give an empty or a new folder"):
        write_samples(source(runtime, 3), tmp_path, runtime)
    (tmp_path / "photo.JPG").rename(tmp_path / "notes.txt")
    write_samples(source(runtime, 3), tmp_path, runtime)


def test_the_same_set_is_continued_over_what_a_kill_left(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(source(runtime, 60), tmp_path / "whole", runtime)
    write_samples(source(runtime, 60), tmp_path / "killed", runtime)
    (tmp_path / "killed" / "000055.png").unlink()
    (tmp_path / "killed" / "000007.png").write_bytes((tmp_path / "whole" / "000007.png").read_bytes()[:40])
    (tmp_path / "killed" / "grid.png").unlink()
    write_samples(source(runtime, 60), tmp_path / "killed", runtime)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    write_samples(source(runtime, 10), tmp_path / "killed", runtime)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert "is of 60 images of this set" in capsys.readouterr().err
    write_samples(source(runtime, 70), tmp_path / "killed", runtime)
    assert open_images(str(tmp_path / "killed"), 1, None).n == 70


def test_a_damaged_note_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "samples.json").write_text('{"n": 3}')
    with pytest.raises(UserError, match=r"samples\.json: cannot be read"):
        write_samples(source(runtime, 3), tmp_path, runtime)
