"""Runs are found at any depth and once, whatever links there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.find_runs import find_runs


def make(path: Path) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    return path


def found(folder: Path) -> dict[str, bool]:
    places = {str(place.path.relative_to(folder)): place.is_run for place in find_runs(folder)}
    assert len(places) == len(find_runs(folder))
    return places


def test_runs_are_found_at_any_depth_below_runs_too_and_other_trees_are_named_at_their_top(tmp_path: Path) -> None:
    for name in ("b", "a/x/y", "a/x/z", "b/later", "c/only"):
        make(tmp_path / name)
    make(tmp_path / "b" / "checkpoints" / "step-00000001")  # never looked into
    for name in ("photos/cats/old", "c/notes", ".hidden/run", "b/plots"):
        (tmp_path / name).mkdir(parents=True)
    assert found(tmp_path) == {
        "a/x/y": True,
        "a/x/z": True,
        "b": True,
        "b/later": True,
        "c/notes": False,
        "c/only": True,
        "photos": False,
    }
    assert found(tmp_path / "b") == {".": True, "later": True}
    assert found(tmp_path / "photos") == {}


def test_links_are_followed_to_runs_alone_and_loops_end(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make(runs / "a")
    make(tmp_path / "elsewhere" / "run")
    (runs / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (runs / "again").symlink_to(tmp_path / "elsewhere" / "run")
    (runs / "_link_to_a").symlink_to("a")
    (runs / "up").symlink_to(tmp_path)
    (runs / "a" / "loop").symlink_to(runs)
    (runs / "itself").symlink_to("itself")
    (runs / "nowhere").symlink_to("absent")
    assert found(runs) == {"a": True, "again": True}


def test_a_tree_of_any_depth_ends(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(200):
        deep = deep / "d"
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    make(tmp_path / "run")
    assert found(tmp_path) == {"d": False, "run": True}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no such folder; give the folder that holds your runs"):
        find_runs(tmp_path / "absent")
    with pytest.raises(UserError, match="a file, and no folder"):
        find_runs(tmp_path / "file")
