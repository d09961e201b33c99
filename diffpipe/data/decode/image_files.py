"""Which files of a folder or an archive are images, by their names."""

from __future__ import annotations

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")
_MACOS = "__MACOSX"  # metadata that macOS adds to archives


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out everywhere: `.DS_Store`, macOS's `._0001.png`, `__MACOSX`."""
    return name.startswith(".") or name == _MACOS


def is_image_name(path: str) -> bool:
    """Whether a file is taken for an image: by its suffix, where no part of its relative path is hidden."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not any(is_hidden(part) for part in path.split("/"))
