"""An output folder appears whole or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.output_folder import output_folder
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels


def test_the_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    debris = tmp_path / ".out.packing" / "whole"
    debris.mkdir(parents=True)
    (debris / "shard-000000.tar").write_bytes(b"half")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(png(random_pixels(0)))
    pack(FolderSource(tmp_path / "src"), tmp_path / "out", prefix="new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.safetensors", "new-000000.tar"]


def test_the_empty_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.packing").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000000.tar").write_bytes(b"whole")
    with pytest.raises(UserError, match="out exists already"), output_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), output_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
