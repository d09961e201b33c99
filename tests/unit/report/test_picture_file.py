"""Files of images and plots: those that can be written, and those that cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.report.picture_file import require_png, save


def test_the_file_must_be_a_png_in_a_folder_that_can_be_made(tmp_path: Path) -> None:
    require_png(tmp_path / "new" / "grid.PNG")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(UserError, match=r"grid\.jpg: the image is written as a PNG"):
        require_png(tmp_path / "grid.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give a place that can be written"):
        require_png(tmp_path / "file" / "grid.png")


def test_images_and_plots_are_saved_and_a_failure_is_the_users_error(tmp_path: Path) -> None:
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    save(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(picture))
    save(Figure(figsize=(2, 1), dpi=50), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as saved:
        assert saved.size == (100, 50)
    with pytest.raises(UserError, match=r"x\.png: cannot be written \(No such file or directory\)"):
        save(picture, tmp_path / "absent" / "x.png")
