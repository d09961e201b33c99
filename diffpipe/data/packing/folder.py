"""Image folders, plain or in a zip archive. Classes come from subfolders, a labels file or a dataset.json."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from diffpipe.data.decode.image_files import IMAGE_SUFFIXES, is_image_name
from diffpipe.data.packing import dataset_json
from diffpipe.data.packing.labels import read_labels
from diffpipe.data.packing.source import PackItem, numbered
from diffpipe.data.packing.tree import Folder, Zip, in_order
from diffpipe.errors import UserError
from diffpipe.plural import plural

_PICTURES = ("grid.png", "trajectory.png")
_NAMED = 5
_DIGITS = 4000  # Python converts no longer numbers


def image_paths(tree: Folder | Zip) -> list[str]:
    """The files that are images by their names, without the pictures that `diffpipe sample` writes beside them."""
    paths = [path for path in tree.paths if is_image_name(path)]
    return [path for path in paths if path not in _PICTURES] if "000000.png" in paths else paths


class FolderSource:
    """The images below a folder or in a zip archive of one.

    With a labels file, the images are those that it names. Else they are those of the `dataset.json` that StyleGAN's
    and EDM's dataset_tool writes, where there is one. Else the subfolders are the classes, sorted as numbers where all
    are numbers, and by name otherwise; if there are none, there are no labels.

    skip_stray: leave out images beside class folders, and class folders without images; otherwise they are refused.
    skipped: the number of files that are no images by their names. stray: the paths that skip_stray has left out.
    unlabelled: the number of images that the labels file does not name. labels_file: the file with the labels, None
    where folders are. ignored_labels: whether folders are classes although there is a `dataset.json`, which has no
    labels that can be read. Raises UserError.
    """

    def __init__(
        self,
        root: Path,
        labels_file: Path | None = None,
        classes: Sequence[str] | None = None,
        *,
        skip_stray: bool = False,
    ):
        self.tree = Folder(root) if root.is_dir() else Zip(root)
        self.labels: list[int] | None = None
        self.classes: list[str] | None = None
        self.paths = image_paths(self.tree)
        self.skipped = len(self.tree.paths) - len(self.paths)
        self.stray: list[str] = []
        self.unlabelled = 0
        self.ignored_labels = False
        self.labels_file = None if labels_file is None else str(labels_file)
        self._rows: dict[str, dict[str, str]] = {}
        if labels_file is not None:
            self._take_rows(read_labels(labels_file), str(labels_file), classes)
            return
        if not self.paths:
            raise UserError(f"{root}: no images in it; give a folder of {', '.join(IMAGE_SUFFIXES)}")
        labels = self._dataset_json()
        if labels:
            self.labels_file, self.skipped = self.tree.where(dataset_json.NAME), self.skipped - 1
            rows = {path: {"path": path, "label": label} for path, label in labels.items()}
            self._take_rows(rows, self.labels_file, classes)
        elif labels is None and self.tree.top:
            self._take_folders(root, skip_stray)
            self.ignored_labels = self.classes is not None and dataset_json.NAME in self.tree.paths

    def _dataset_json(self) -> dict[str, str] | None:
        """The labels that dataset_tool wrote, none of them where it wrote no labels, None without its file."""
        if dataset_json.NAME not in self.tree.paths:
            return None
        return dataset_json.parse_dataset_json(self.tree.read(dataset_json.NAME), self.tree.where(dataset_json.NAME))

    def _take_rows(self, rows: dict[str, dict[str, str]], where: str, classes: Sequence[str] | None) -> None:
        """Take the images that the rows of a labels file name."""
        known = set(self.paths)
        windows = {path: path.replace("\\", "/") for path in rows if "\\" in path and path not in known}
        rows = {windows.get(path, path): row for path, row in rows.items()}
        self.unlabelled = sum(path not in rows for path in self.paths)
        if self.unlabelled == len(self.paths):
            raise UserError(
                f"{where}: it names none of the {plural(len(self.paths), 'image')} of {self.tree.root}, but for "
                f"example {next(iter(rows))}; give paths relative to {self.tree.root}"
            )
        self._rows, self.paths = rows, in_order(rows)
        self.labels, self.classes = numbered([rows[path]["label"] for path in self.paths], classes, where)

    def _take_folders(self, root: Path, skip_stray: bool) -> None:
        """Take the folders directly in the root as classes."""
        loose = [path for path in self.paths if "/" not in path]
        full = {path.partition("/")[0] for path in self.paths if "/" in path}
        empty = [name for name in self.tree.top if name not in full]
        if loose and not skip_stray:
            raise UserError(
                f"{root}: holds images beside class folders, {some(loose)}; move them into one, or leave them out with "
                "--skip-stray"
            )
        if empty and not skip_stray:
            raise UserError(
                f"{self.tree.where(empty[0])}: a class without images; add some, remove the folder, or leave such "
                "folders out with --skip-stray"
            )
        self.stray = [*loose, *(f"{name}/" for name in empty)]
        self.paths = [path for path in self.paths if "/" in path]
        if self.paths:
            self.classes = sorted(full, key=_number_or_name(full))
            number = {name: label for label, name in enumerate(self.classes)}
            self.labels = [number[path.partition("/")[0]] for path in self.paths]
        else:  # no folder has images: they are not classes
            self.stray, self.paths = self.stray[len(loose) :], loose

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


def some(names: Sequence[str]) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _number_or_name(names: Collection[str]) -> Callable[[str], tuple[int, str]]:
    """The key to sort class folders by: numbers as numbers, so that 10 comes after 9, where all names are numbers."""
    if all(name.isascii() and name.isdigit() and len(name) <= _DIGITS for name in names):
        return lambda name: (int(name), name)
    return lambda name: (0, name)
