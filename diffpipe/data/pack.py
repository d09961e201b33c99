"""Image folders and idx files → WebDataset shards with their index; the same input gives the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffpipe import rng
from diffpipe.contract import UserError
from diffpipe.data.decode import decode, fit
from diffpipe.data.idx import read_idx
from diffpipe.data.table import write_index

_KEPT = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
_CONVERTED = {".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_NO_WORDS = np.zeros(3, dtype=np.int64)


@runtime_checkable
class Source(Protocol):
    """Encoded images to pack, with a label each (or none at all) and the names of the classes (or none)."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of image i."""
        ...


class FolderSource:
    """The images of a folder. Its subfolders are the classes, by name; images directly in it have no labels.

    PNG, JPEG and WebP files that need no resize stay byte for byte. `skipped` counts the files that are no images by
    their names. Raises UserError.
    """

    def __init__(self, folder: Path, resolution: int | None = None):
        self.resolution = resolution
        self.labels: list[int] | None = None
        self.classes: list[str] | None = None
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        subfolders = [path for path in entries if path.is_dir()]
        files = [path for path in entries if path.is_file()]
        self.paths = [path for path in files if _is_image(path)]
        self.skipped = len(files) - len(self.paths)
        if self.paths and subfolders:
            raise UserError(
                f"{folder}: holds images beside class folders; move {self.paths[0].name} and the like into one"
            )
        if subfolders:
            self.classes = [path.name for path in subfolders]
            self.labels = []
            for label, subfolder in enumerate(subfolders):
                files = sorted(p for p in subfolder.rglob("*") if p.is_file() and not p.name.startswith("."))
                images = [path for path in files if _is_image(path)]
                if not images:
                    raise UserError(f"{subfolder}: a class without images; add some or remove the folder")
                self.paths.extend(images)
                self.labels.extend([label] * len(images))
                self.skipped += len(files) - len(images)
        if not self.paths:
            raise UserError(f"{folder}: no images in it; give a folder of {', '.join([*_KEPT, *sorted(_CONVERTED)])}")

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, i: int) -> tuple[str, bytes]:
        path = self.paths[i]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        image = decode(data, None, str(path))
        kept = _KEPT.get(path.suffix.lower())
        if kept and (self.resolution is None or image.size == (self.resolution, self.resolution)):
            return kept, data
        return "png", _png(image, self.resolution)


class IdxSource:
    """The grey images of an idx file, with the labels of another. Raises UserError."""

    def __init__(
        self,
        images: Path,
        labels: Path | None = None,
        classes: Sequence[str] | None = None,
        resolution: int | None = None,
    ):
        self.images = read_idx(images, 3)
        self.labels: list[int] | None = None if labels is None else read_idx(labels, 1).tolist()
        self.classes = classes
        self.resolution = resolution
        if self.labels is None:
            if classes is not None:
                raise UserError(f"{images}: class names without labels; give the labels file with --labels")
            return
        if len(self.labels) != len(self.images):
            raise UserError(
                f"{labels}: {len(self.labels)} labels for {len(self.images)} images; give the file that matches"
            )
        if classes is not None and max(self.labels, default=-1) >= len(classes):
            raise UserError(f"{labels}: a label is {max(self.labels)}, but there are only {len(classes)} class names")

    def __len__(self) -> int:
        return len(self.images)

    def encoded(self, i: int) -> tuple[str, bytes]:
        return "png", _png(Image.fromarray(self.images[i]), self.resolution)


def pack(
    source: Source,
    out: Path,
    *,
    shard_samples: int = 1000,
    per_class: int | None = None,
    seed: int = 0,
    prefix: str = "shard",
) -> None:
    """Write the shards `out/PREFIX-000000.tar` … and their index; `out` appears whole or not at all.

    The samples are shuffled by `seed`, so that each shard mixes the classes; keys are indices into the source.
    per_class: so many samples of each class, chosen by `seed`. Raises UserError.
    """
    if Path(prefix).name != prefix:
        raise UserError(f"--prefix {prefix!r} is not a file name; give a plain word such as train")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another name")
    chosen = _choose(source, per_class, seed)
    chosen = chosen[rng.permutation(len(chosen), seed, "pack")]
    temporary = out.parent.absolute() / f".{out.absolute().name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        with tqdm(total=len(chosen), unit="image", disable=None) as progress:
            for number, start in enumerate(range(0, len(chosen), shard_samples)):
                with tarfile.open(temporary / f"{prefix}-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                    for i in chosen[start : start + shard_samples].tolist():
                        _add(tar, f"{i:08d}", source, i)
                        progress.update()
        write_index(temporary, source.classes)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or change the rights") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _choose(source: Source, per_class: int | None, seed: int) -> np.ndarray:
    """Indices of the samples to pack, int64."""
    if per_class is None:
        return np.arange(len(source))
    if source.labels is None:
        raise UserError("--per-class needs labels; give class folders or a labels file")
    labels = np.asarray(source.labels)
    chosen: list[np.ndarray] = []
    for label in range(len(source.classes) if source.classes is not None else int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            name = label if source.classes is None else source.classes[label]
            raise UserError(
                f"class {name} has {len(members)} images, fewer than --per-class {per_class}; ask for fewer"
            )
        chosen.append(members[rng.permutation(len(members), seed, "per-class", label)[:per_class]])
    return np.concatenate(chosen)


def _add(tar: tarfile.TarFile, key: str, source: Source, i: int) -> None:
    extension, data = source.encoded(i)
    members = {extension: data}
    if source.labels is not None:
        members["cls"] = str(source.labels[i]).encode()
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")  # its owner and time are zero, so the same input gives the same bytes
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _KEPT or path.suffix.lower() in _CONVERTED


def _png(image: Image.Image, resolution: int | None) -> bytes:
    if resolution is not None:
        image = fit(image, resolution, "center", False, _NO_WORDS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
