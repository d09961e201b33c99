"""The source at a path or name: which kind it is, and the options that belong to that kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffpipe import plugins
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.hub import SCHEME, HubSource, is_saved
from diffpipe.data.packing.idx import IdxSource, find_idx
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import Source
from diffpipe.errors import UserError
from diffpipe.files import user_path

# The kinds of sources, as messages name them.
_FOLDERS, _ZIPS, _IDX_FOLDERS, _IDX_FILES = "image folders", "zip archives", "folders of idx files", "idx files"
_CIFAR, _HUB, _SAVED, _SHARDS = "the CIFAR-10 archive", "Hugging Face datasets", "saved datasets", "shards"
_KINDS_OF_OPTION = {
    "labels": (_IDX_FILES,),
    "labels_file": (_FOLDERS, _ZIPS),
    "split": (_IDX_FOLDERS, _CIFAR, _HUB, _SAVED),
    "classes": (_IDX_FILES, _IDX_FOLDERS, _FOLDERS, _ZIPS),
    "columns": (_HUB, _SAVED),
}


def open_source(
    src: str,
    *,
    labels_file: Path | None = None,
    labels: Path | None = None,
    split: str | None = None,
    classes: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> Source:
    """The samples at `src`: a path, a dataset of the Hugging Face hub, or a plug-in's source.

    src: a path, `hf:NAME`, `hf:NAME:CONFIG`, or `NAME:PATH` for the source that a plug-in calls NAME.
    labels_file: labels of images by their relative paths. labels: the labels file of an images idx file. split: "train"
    (the default), "test", or a split of a Hugging Face dataset. classes: class names, for idx and labels files.
    columns: the image and the label column of a Hugging Face dataset. Raises UserError, also for an option of another
    kind of source.
    """
    name, _, place = src.partition(":")
    plugin = plugins.find("packing_sources", name)
    src = str(user_path(src))
    kind = _kind(src) if plugin is None else f"a plug-in's {name}"
    options = {"labels_file": labels_file, "labels": labels, "split": split, "classes": classes, "columns": columns}
    for option, kinds in _KINDS_OF_OPTION.items():
        if options[option] and kind not in kinds:
            name = option.replace("_", "-")
            raise UserError(f"--{name} is for {', '.join(kinds)}, but SRC is none of these ({kind}); leave it out")
    if classes and kind in (_FOLDERS, _ZIPS) and labels_file is None:
        raise UserError(
            "--classes is for idx files and labels files; the classes of an image folder are its subfolders"
        )
    if plugin is not None:
        return plugin(place)
    return _open(kind, src, labels_file, labels, split, classes, columns)


def _open(
    kind: str,
    src: str,
    labels_file: Path | None,
    labels: Path | None,
    split: str | None,
    classes: Sequence[str],
    columns: Sequence[str],
) -> Source:
    path = Path(src)
    if kind == _SHARDS:
        return ShardSource(load(src))
    if kind in (_HUB, _SAVED):
        return HubSource(src, split, columns)
    if kind == _CIFAR:
        return CifarSource(path, split or "train")
    if kind == _IDX_FILES:
        return IdxSource(path, labels, classes or None)
    if kind == _IDX_FOLDERS:
        files = find_idx(path, "t10k" if split == "test" else split or "train")
        if files is None:
            raise UserError(f"{path}: no {split or 'train'}-images-idx3-ubyte and labels in it; check --split and SRC")
        return IdxSource(*files, classes or None)
    return FolderSource(path, labels_file, classes or None)


def _kind(src: str) -> str:
    """The kind of source at `src`. Raises UserError where there is nothing, or tars without an index."""
    path = Path(src)
    if src.startswith(SCHEME):
        return _HUB
    if not path.exists():
        raise UserError(f"{src}: no such file or folder; give an image folder, an archive, an idx file or hf:NAME")
    if path.suffix == ".tar" or (path / INDEX_NAME).exists():
        return _SHARDS
    if path.is_file():
        gzipped = _CIFAR if path.name.lower().endswith(".tar.gz") else _IDX_FILES
        return {".zip": _ZIPS, ".gz": gzipped, ".tgz": _CIFAR}.get(path.suffix.lower(), _IDX_FILES)
    if is_saved(path):
        return _SAVED
    if find_idx(path, "train") or find_idx(path, "t10k"):
        return _IDX_FOLDERS
    if next(path.glob("*.tar"), None) is not None:
        raise UserError(f"{src}: holds tars without an index; run: diffpipe index {src}")
    return _FOLDERS


def unpacked_files(source: Source, bad: Sequence[str]) -> list[str]:
    """A phrase for each kind of files in the source that were not packed. bad: the reasons for bad samples."""
    notes = []
    if isinstance(source, FolderSource) and source.skipped:
        notes.append(f"skipped {source.skipped} files that are no images by their names")
    if isinstance(source, FolderSource) and source.unlabelled:
        notes.append(f"skipped {source.unlabelled} images that {source.labels_file} does not name")
    if bad:
        notes.append(f"skipped {len(bad)} bad sample{'s' if len(bad) > 1 else ''}")
    return notes
