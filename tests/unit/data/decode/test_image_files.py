"""The files that are images by their names, in folders and archives alike."""

from __future__ import annotations

import pytest

from diffpipe.data.decode.image_files import is_hidden, is_image_name


@pytest.mark.parametrize("path", ["a.png", "cat/a.JPG", "cat/x.y.webp", "a b/é.tiff"])
def test_images_are_known_by_their_suffix(path: str) -> None:
    assert is_image_name(path)


@pytest.mark.parametrize(
    "path", ["._a.png", "cat/._a.png", "__MACOSX/a.png", ".cache/a.png", "a.txt", "png", "Thumbs.db"]
)
def test_hidden_files_and_other_files_are_left_out(path: str) -> None:
    assert not is_image_name(path)


def test_what_macos_adds_is_hidden() -> None:
    assert all(map(is_hidden, ["._0001.png", ".DS_Store", "__MACOSX"]))
    assert not any(map(is_hidden, ["0001.png", "_MACOSX", "a.b"]))
