"""Image folders, plain or in a zip archive. Classes come from subfolders or from a labels file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffpipe.data.packing.labels import read_labels
from diffpipe.data.packing.source import PackItem, numbered
from diffpipe.data.packing.tree import Folder, Zip, in_order
from diffpipe.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff")


def image_paths(tree: Folder | Zip) -> list[str]:
    """The files that are images by their names, without the `grid.png` that `diffpipe sample` writes beside others."""
    paths = [path for path in tree.paths if path.lower().endswith(SUFFIXES)]
    return [path for path in paths if path != "grid.png"] if "000000.png" in paths else paths


class FolderSource:
    """The images below a folder or in a zip archive of one.

    Without a labels file, its subfolders are the classes, sorted by name; if it has none, there are no labels. With a
    labels file, the images are those that it names. skipped: the number of files that are no images by their names.
    unlabelled: the number of images that the labels file does not name. Raises UserError.
    """

    def __init__(self, root: Path, labels_file: Path | None = None, classes: Sequence[str] | None = None):
        self.tree = Folder(root) if root.is_dir() else Zip(root)
        self.labels: list[int] | None = None
        self.classes: list[str] | None = None
        self.paths = image_paths(self.tree)
        self.skipped = len(self.tree.paths) - len(self.paths)
        self.unlabelled = 0
        self.labels_file = labels_file
        self._rows: dict[str, dict[str, str]] = {}
        if labels_file is not None:
            self._rows = read_labels(labels_file)
            self.unlabelled = sum(path not in self._rows for path in self.paths)
            if self.unlabelled == len(self.paths):
                raise UserError(
                    f"{labels_file}: it names none of the {len(self.paths)} images of {root}, but for example "
                    f"{next(iter(self._rows))}; give paths relative to {root}"
                )
            self.paths = in_order(self._rows)
            named = [self._rows[path]["label"] for path in self.paths]
            self.labels, self.classes = numbered(named, classes, str(labels_file))
            return
        if not self.paths:
            raise UserError(f"{root}: no images in it; give a folder of {', '.join(SUFFIXES)}")
        if self.tree.top:
            self.classes = self.tree.top
            self.labels = self._labels_of_folders(root)

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, i: int) -> PackItem:
        return PackItem(self.tree.where(self.paths[i]), self.tree.read(self.paths[i]))

    def names(self) -> list[str]:
        return self.paths

    def column(self, name: str) -> list[str]:
        if self.labels_file is None:
            raise UserError(f"{self.tree.root}: no labels file, so no column {name!r}; give one with --labels-file")
        for path in self.paths:
            if name not in self._rows[path]:
                known = ", ".join(self._rows[path])
                raise UserError(f"{self.labels_file}: {path} has no column {name!r}, but {known}; give one of them")
        return [self._rows[path][name] for path in self.paths]

    def _labels_of_folders(self, root: Path) -> list[int]:
        stray = next((path for path in self.paths if "/" not in path), None)
        if stray is not None:
            raise UserError(f"{root}: holds images beside class folders; move {stray} and others like it into one")
        number = {name: label for label, name in enumerate(self.tree.top)}
        labels = [number[path.split("/")[0]] for path in self.paths]
        empty = sorted(set(range(len(number))) - set(labels))
        if empty:
            name = self.tree.where(self.tree.top[empty[0]])
            raise UserError(f"{name}: a class without images; add some or remove the folder")
        return labels
