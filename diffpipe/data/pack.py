"""Image folders, idx files and shards → WebDataset shards with their index; the same input gives the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffpipe import rng
from diffpipe.contract import UserError
from diffpipe.data.decode import decode, fit
from diffpipe.data.idx import read_idx
from diffpipe.data.index import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.read import Reader
from diffpipe.data.table import write_index

_KEPT = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
_CONVERTED = {".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_NO_WORDS = np.zeros(3, dtype=np.int64)


@runtime_checkable
class Source(Protocol):
    """Samples to pack, with a label each (or none at all) and the names of the classes (or none)."""

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def members(self, i: int) -> dict[str, bytes]:
        """The members of sample i by extension: its encoded image, and what else it has beside its label."""
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

    def members(self, i: int) -> dict[str, bytes]:
        path = self.paths[i]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        image = decode(data, None, str(path))
        kept = _KEPT.get(path.suffix.lower())
        if kept and (self.resolution is None or image.size == (self.resolution, self.resolution)):
            return {kept: data}
        return {"png": _png(image, self.resolution)}


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

    def members(self, i: int) -> dict[str, bytes]:
        return {"png": _png(Image.fromarray(self.images[i]), self.resolution)}


class ShardSource:
    """The samples of shards in their order, every member byte for byte but for images that a resolution resizes."""

    def __init__(self, shards: ShardSet, resolution: int | None = None):
        self.shards, self.reader, self.resolution = shards, Reader(shards), resolution
        self.classes = shards.classes
        self._places = [(shard, i) for shard, count in enumerate(shards.counts.tolist()) for i in range(count)]
        self.labels: list[int] | None = None
        if all(shard.classes is not None for shard in shards.shards):
            self.labels = [self.reader.label(shard, shards.sample(shard, i)) for shard, i in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def members(self, i: int) -> dict[str, bytes]:
        shard, place = self._places[i]
        sample = self.shards.sample(shard, place)
        found = {extension: self.reader.read(shard, sample, extension) for extension in sample.members}
        if self.resolution is not None:
            for extension in found.keys() & set(IMAGE_EXTENSIONS):
                data = found.pop(extension)
                image = decode(data, None, f"{self.shards.paths[shard]}: {sample.key}.{extension}")
                resized = image.size != (self.resolution, self.resolution)
                found |= {"png": _png(image, self.resolution)} if resized else {extension: data}
        return found


def pack(
    source: Source,
    out: Path,
    *,
    shard_samples: int = 1000,
    only: Collection[int] = (),
    leave_out: Collection[int] = (),
    per_class: int | None = None,
    seed: int = 0,
    prefix: str = "shard",
) -> None:
    """Write the shards `out/PREFIX-000000.tar` … and their index; `out` appears whole or not at all.

    The samples are shuffled by `seed`, so that each shard mixes the classes; keys are indices into the source.
    only, leave_out: the labels to keep (all if none are given) and not to; none is renumbered. per_class: so many
    samples of each class that is kept, chosen by `seed`. Raises UserError.
    """
    if Path(prefix).name != prefix:
        raise UserError(f"--prefix {prefix!r} is not a file name; give a plain word such as train")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another name")
    chosen = _choose(source, only, leave_out, per_class, seed)
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


def _choose(
    source: Source, only: Collection[int], leave_out: Collection[int], per_class: int | None, seed: int
) -> np.ndarray:
    """Indices of the samples to pack, int64."""
    options = {"--only": only, "--leave-out": leave_out, "--per-class": per_class}
    used = [option for option, value in options.items() if value]
    if not used:
        return np.arange(len(source))
    if source.labels is None:
        raise UserError(f"{used[0]} needs labels; give class folders or a labels file")
    labels = np.asarray(source.labels)
    names = source.classes
    known = np.arange(len(names)) if names is not None else np.unique(labels)
    for option, asked in (("--only", only), ("--leave-out", leave_out)):
        unknown = sorted(set(asked) - set(known.tolist()))
        if unknown:
            raise UserError(f"{option} {unknown[0]}: no such label; the labels are {known[0]} to {known[-1]}")
    kept = [label for label in sorted(set(only)) or known.tolist() if label not in leave_out]
    chosen = [np.flatnonzero(np.isin(labels, kept))]
    if per_class is not None:
        chosen = []
        for label in kept:
            members = np.flatnonzero(labels == label)
            if len(members) < per_class:
                name = label if names is None else names[label]
                raise UserError(
                    f"class {name} has {len(members)} images, fewer than --per-class {per_class}; ask for fewer"
                )
            chosen.append(members[rng.permutation(len(members), seed, "per-class", label)[:per_class]])
    if not sum(map(len, chosen)):
        raise UserError("--only and --leave-out leave no images; keep a class that has some")
    return np.concatenate(chosen)


def _add(tar: tarfile.TarFile, key: str, source: Source, i: int) -> None:
    members = source.members(i)
    if source.labels is not None:
        members.setdefault("cls", str(source.labels[i]).encode())
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
