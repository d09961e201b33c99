"""The source at a path or name: which kind it is, and the options that belong to that kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffpipe import plugins
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from diffpipe.data.packing import dataset_json
from diffpipe.data.packing.cifar import CifarSource
from diffpipe.data.packing.folder import FolderSource, some
from diffpipe.data.packing.hub import SCHEME, HubSource, is_saved
from diffpipe.data.packing.idx import IdxSource, find_idx
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import Source
from diffpipe.data.remote.urls import is_remote, redacted
from diffpipe.errors import UserError, shell_command
from diffpipe.files import user_path
from diffpipe.plural import plural

# The kinds of sources, as messages name them.
_FOLDERS, _ZIPS, _IDX_FOLDERS, _IDX_FILES = "image folders", "zip archives", "folders of idx files", "idx files"
_CIFAR, _HUB, _SAVED, _SHARDS = "the CIFAR-10 archive", "Hugging Face datasets", "saved datasets", "shards"
_NAMED_CLASSES = 100
_KINDS_OF_OPTION = {
    "labels": (_IDX_FILES,),
    "labels_file": (_FOLDERS, _ZIPS),
    "split": (_IDX_FOLDERS, _CIFAR, _HUB, _SAVED),
    "classes": (_IDX_FILES, _IDX_FOLDERS, _FOLDERS, _ZIPS),
    "columns": (_HUB, _SAVED),
    "skip_stray": (_FOLDERS, _ZIPS),
}


def open_source(
    src: str,
    *,
    labels_file: Path | None = None,
    labels: Path | None = None,
    split: str | None = None,
    classes: Sequence[str] = (),
    columns: Sequence[str] = (),
    skip_stray: bool = False,
) -> Source:
    """The samples at `src`: a path, a dataset of the Hugging Face hub, or a plug-in's source.

    src: a path, `hf:NAME`, `hf:NAME:CONFIG`, or `NAME:PATH` for the source that a plug-in calls NAME.
    labels_file: labels of images by their relative paths. labels: the labels file of an images idx file. split: "train"
    (the default), "test", or a split of a Hugging Face dataset. classes: class names, for idx and labels files.
    columns: the image and the label column of a Hugging Face dataset. skip_stray: see `FolderSource`. Raises UserError,
    also for an option of another kind of source.
    """
    name, _, place = src.partition(":")
    plugin = plugins.find("packing_sources", name)
    if plugin is None and is_remote(src):
        raise UserError(
            f"{redacted(src)}: a URL, and images are packed from files here; copy them here, or index remote shards by "
            "diffpipe index; a dataset of the Hugging Face hub is hf:NAME"
        )
    src = str(user_path(src))
    kind = _kind(src) if plugin is None else f"a plug-in's {name}"
    options = {"labels_file": labels_file, "labels": labels, "split": split, "classes": classes, "columns": columns}
    options["skip_stray"] = skip_stray
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
    if kind in (_FOLDERS, _ZIPS):
        return FolderSource(Path(src), labels_file, classes or None, skip_stray=skip_stray)
    return _open(kind, src, labels, split, classes, columns)


def _open(
    kind: str,
    src: str,
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
    files = find_idx(path, "t10k" if split == "test" else split or "train")
    if files is None:
        raise UserError(f"{path}: no {split or 'train'}-images-idx3-ubyte and labels in it; check --split and SRC")
    return IdxSource(*files, classes or None)


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
    if not path.is_dir():
        raise UserError(f"{src}: neither a file nor a folder; give an image folder, an archive, an idx file or hf:NAME")
    if is_saved(path):
        return _SAVED
    if find_idx(path, "train") or find_idx(path, "t10k"):
        return _IDX_FOLDERS
    if next(path.glob("*.tar"), None) is not None:
        raise UserError(f"{src}: holds tars without an index; run: {shell_command('diffpipe', 'index', src)}")
    return _FOLDERS


def unpacked_files(source: Source, bad: Sequence[str]) -> list[str]:
    """A phrase for each kind of files in the source that were not packed. bad: the reasons for bad samples."""
    notes = []
    if isinstance(source, FolderSource) and source.ignored_labels:
        notes.append(
            f"warning: {dataset_json.NAME} is not used, since it is not JSON with `labels`: the folders are the "
            "classes; if they are not, correct it, or give the labels with --labels-file"
        )
    if isinstance(source, FolderSource) and source.skipped:
        notes.append(
            "skipped "
            f"{plural(source.skipped, 'file that is no image by its name', 'files that are no images by their names')}"
        )
    if isinstance(source, FolderSource) and source.unlabelled:
        notes.append(f"skipped {plural(source.unlabelled, 'image')} that {source.labels_file} does not name")
    if isinstance(source, FolderSource) and source.stray:
        count = len(source.stray)
        notes.append(
            f"skipped {plural(count, 'image')} beside the class folders and empty class folders: {some(source.stray)}"
        )
    if bad:
        notes.append(f"skipped {plural(len(bad), 'bad sample')}")
    return notes


def describe_labels(source: Source) -> str | None:
    """The label of each class by its name, in one line, or None where the classes have no names."""
    if source.labels is None or source.classes is None:
        return None
    of = f" of {source.labels_file}" if isinstance(source, FolderSource) and source.labels_file else ""
    named = [f"{label}: {name}" for label, name in enumerate(source.classes[:_NAMED_CLASSES])]
    more = f" and {len(source.classes) - _NAMED_CLASSES} more" if len(source.classes) > _NAMED_CLASSES else ""
    return f"labels{of}: {', '.join(named)}{more}"
