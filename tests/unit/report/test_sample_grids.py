"""The grids of a page: few, small, and none that is not a PNG."""

from __future__ import annotations

import base64
import io
import itertools
from pathlib import Path

from PIL import Image

from diffpipe.report.sample_grids import MOST_GRIDS, read_grids
from tests.support.report_runs import write_grid


def test_a_grid_is_in_the_page_as_it_is_in_the_file(tmp_path: Path) -> None:
    path = write_grid(tmp_path, 20)
    (grid,) = read_grids(tmp_path / "samples").grids
    kind, _, content = grid.url.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == path.read_bytes()
    assert (grid.step, grid.width, grid.height) == (20, 240, 120)


def test_of_many_grids_the_first_and_the_last_stay(tmp_path: Path) -> None:
    for step in range(0, 1000, 10):
        write_grid(tmp_path, step)
    grids = read_grids(tmp_path / "samples")
    steps = [grid.step for grid in grids.grids]
    assert (len(steps), steps[0], steps[-1], grids.total) == (MOST_GRIDS, 0, 990, 100)
    distances = {b - a for a, b in itertools.pairwise(steps)}
    assert distances <= {40, 50}
    assert not grids.shrunk


def test_a_large_grid_is_shrunk(tmp_path: Path) -> None:
    write_grid(tmp_path, 1, (2048, 1024), noise=True)
    grids = read_grids(tmp_path / "samples")
    (grid,) = grids.grids
    kind, _, content = grid.url.partition(",")
    assert grids.shrunk
    assert (kind, grid.width, grid.height) == ("data:image/jpeg;base64", 1024, 512)
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (1024, 512)


def test_what_is_no_grid_is_counted_or_ignored(tmp_path: Path) -> None:
    path = write_grid(tmp_path, 1)
    folder = path.parent
    (folder / "step-00000002.png").write_text("<script>alert(1)</script>")
    (folder / "step-00000003.png").write_bytes(path.read_bytes()[:90])
    (folder / "step-00000004.png").symlink_to(path)
    Image.new("RGB", (8, 8)).save(folder / "step-00000005.png", "JPEG")
    (folder / "grid.png").write_bytes(path.read_bytes())
    grids = read_grids(folder)
    assert [grid.step for grid in grids.grids] == [1]
    assert (grids.total, grids.unreadable) == (5, 4)
    assert read_grids(tmp_path / "absent").total == 0
