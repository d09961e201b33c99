"""Hugging Face datasets, from the hub or saved on disk. The library is an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffpipe.data.index.scan import MAX_MEMBER
from diffpipe.data.packing.source import PackItem, numbered
from diffpipe.errors import UserError
from diffpipe.files import read_regular

SCHEME = "hf:"
_SAVED = ("dataset_info.json", "dataset_dict.json")
_USUAL = ("label", "labels")


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in _SAVED)


class HubSource:
    """One split of a dataset: `hf:NAME` or `hf:NAME:CONFIG` of the hub, or a folder that `save_to_disk` wrote.

    columns: the image column, and the label column where there is one. Default: the only column of images, and the only
    one of class labels or else the one called label. If all labels are missing, the source has no labels. Raises
    UserError.
    """

    def __init__(self, path: str, split: str | None = None, columns: Sequence[str] = ()):
        self.path = path
        table = _open(path, split)
        self._image, label = _columns(table, columns, path)
        datasets = _library(path)
        self.labels, self.classes = (None, None) if label is None else _labels(table, label, path)
        self._table = table
        # The encoded bytes: this package decodes and checks them itself.
        self._images = table.select_columns([self._image]).cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._images)

    def item(self, i: int) -> PackItem:
        where = f"{self.path}: row {i}"
        value = self._images[i][self._image]
        if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
            raise UserError(f"{where}: its {self._image} is empty; remove the row")
        data = value.get("bytes")
        if data:
            return PackItem(where, bytes(data))
        try:
            return PackItem(where, read_regular(self._file(value["path"], where), follow_links=True, limit=MAX_MEMBER))
        except OSError as error:
            raise UserError(f"{where}: {value['path']} cannot be read ({error.strerror}); restore it") from error

    def _file(self, path: str, where: str) -> Path:
        """The file of an image that is not in the dataset itself. Raises UserError where it could be any file."""
        name = self.path.removeprefix(SCHEME).partition(":")[0]
        datasets = _library(self.path)
        caches = [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE]
        folders = [name, *(caches if self.path.startswith(SCHEME) else [])]
        file = Path(path).resolve()
        if not any(file.is_relative_to(Path(folder).resolve()) for folder in folders):
            raise UserError(
                f"{where}: its {self._image} is the file {path}, outside of the dataset; save the dataset with its "
                "images in it (Dataset.save_to_disk does)"
            )
        return file

    def names(self) -> list[str]:
        paths = [(row[self._image] or {}).get("path") or "" for row in self._images]
        if "" in paths:
            raise UserError(f"{self.path}: its images have no names to split by; give --split-by column:NAME")
        return paths

    def column(self, name: str) -> list[str]:
        if name not in self._table.column_names:
            known = ", ".join(self._table.column_names)
            raise UserError(f"{self.path}: no column {name!r}, but {known}; give one of them")
        return [str(value) for value in self._table.select_columns([name])[:][name]]


def _library(path: str) -> Any:
    try:
        import datasets  # noqa: PLC0415 (optional, and slow to import)
    except ImportError as error:
        raise UserError(f"{path}: reading it needs the library datasets; run: pip install 'diffpipe[hf]'") from error
    return datasets


def _open(path: str, split: str | None) -> Any:
    datasets = _library(path)
    try:
        if path.startswith(SCHEME):
            name, _, config = path.removeprefix(SCHEME).partition(":")
            return datasets.load_dataset(name, config or None, split=split or "train")
        saved = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{path}: cannot be loaded ({error}); check its name, --split, and the network or `hf auth login`"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        if split is not None:
            raise UserError(f"{path}: a single dataset without splits; leave out --split")
        return saved
    split = split or "train"
    if split not in saved:
        raise UserError(f"{path}: no split {split!r}, but {', '.join(saved)}; give one of them with --split")
    return saved[split]


def _columns(table: Any, requested: Sequence[str], path: str) -> tuple[str, str | None]:
    """The names of the image column and of the label column, if there is one."""
    datasets = _library(path)
    known = f"its columns are {', '.join(table.column_names)}"
    unknown = next((name for name in requested if name not in table.column_names), None)
    if unknown is not None:
        raise UserError(f"{path}: no column {unknown!r}; {known}; give others with --columns")
    if len(requested) > 1:
        return requested[0], requested[1]
    images = requested or [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(images) != 1:
        raise UserError(f"{path}: {len(images)} columns of images; {known}; choose with --columns IMAGE,LABEL")
    labels = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in _USUAL if name in table.column_names]
    if len(labels) > 1:
        raise UserError(f"{path}: several columns of labels, {', '.join(labels)}; choose with --columns IMAGE,LABEL")
    return images[0], labels[0] if labels else None


def _labels(table: Any, column: str, path: str) -> tuple[list[int] | None, list[str] | None]:
    """The label of each row, and the names of the classes."""
    datasets = _library(path)
    kind = table.features[column]
    values = table.select_columns([column])[:][column]
    missing = [i for i, value in enumerate(values) if value is None or value == -1]  # the hub's test sets have -1
    if len(missing) == len(values):
        return None, None
    if missing:
        raise UserError(f"{path}: row {missing[0]} has no {column}, as have {len(missing) - 1} more; remove the rows")
    if isinstance(kind, datasets.ClassLabel):
        return values, list(kind.names)
    if not all(isinstance(value, int | str) for value in values):
        raise UserError(f"{path}: {column} is neither numbers nor text; choose with --columns IMAGE,LABEL")
    return numbered([str(value) for value in values], None, f"{path}: {column}")
