"""Images by index, for image grids and scores: generated ones and those of shards."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.data.decode.stack import differ
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.interfaces import Generates, ImageShape, Stage
from diffpipe.plural import plural
from diffpipe.resolution import Resolution
from diffpipe.rng import KeyedRNG, permutation_start
from diffpipe.train.runtime import Runtime


class GeneratedImages:
    """The images that a stage generates: image i is a function of (seed, i) and the weights alone.

    label: the class of every image; None: image i of a class-conditional stage has class i mod classes.
    """

    def __init__(
        self,
        stage: Stage,
        nets: Mapping[str, nn.Module],
        shape: ImageShape,
        runtime: Runtime,
        *,
        n: int,
        seed: int,
        label: int | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        if not isinstance(stage, Generates):
            raise UserError(f"a stage of {type(stage).__name__} generates no images; give a run of another kind")
        if n < 1:
            raise UserError(f"n is {n}; give 1 or more images")
        if label is not None and not 0 <= label < shape.classes:
            known = f"0 to {shape.classes - 1}" if shape.classes else "none: it was trained without labels"
            raise UserError(f"label {label}: the labels of this run are {known}")
        self.stage: Generates = stage
        self.nets, self.shape, self.runtime = nets, shape, runtime
        self.n, self.seed, self.label, self.about = n, seed, label, dict(about or {})

    def describe(self) -> dict[str, Any]:
        labels = self.label if self.label is not None else ("index mod classes" if self.shape.classes else None)
        precision = str(self.runtime.dtype).removeprefix("torch.")
        about = {"seed": self.seed, "indices": [0, self.n - 1], "labels": labels, "precision": precision, **self.about}
        return about | describe_shape(self.shape.channels, self.size, resized=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape.resolution

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        """The images of these sample indices, on the CPU. The bits depend on the whole range, not on i alone."""
        with self.runtime.autocast():
            return self.stage.generate(self.nets, *self.noise_and_labels(indices)).cpu()

    def noise_and_labels(self, indices: range) -> tuple[KeyedRNG, Int[Tensor, " b"] | None]:
        """The noise and the class of each of these images."""
        positions = torch.tensor(indices, device=self.runtime.device)
        labels = None
        if self.shape.classes:
            labels = positions % self.shape.classes if self.label is None else torch.full_like(positions, self.label)
        return KeyedRNG(self.seed, positions), labels


RESIZE = "shorter side to this size, bicubic with antialiasing, then cropped at the centre"
RESIZE_TO_COVER = "to the smallest size that covers this one, bicubic with antialiasing, then cropped at the centre"


def describe_shape(channels: int, size: tuple[int, int], *, resized: bool) -> dict[str, Any]:
    """The part of a score's protocol about the shape that images were brought to."""
    resize = RESIZE if size[0] == size[1] else RESIZE_TO_COVER
    return {"channels": channels, "size": list(size), "resize": resize if resized else "none"}


class StoredImages(ABC):
    """Images that exist already, in order, or `n` of them drawn without replacement by the seed.

    place, holds: the name of the set and the verb in messages. total: the number of its images. resolution: they
    are resized to cover it and cropped at the centre; None: they keep their size, which must be the same for all.
    drawn: the part of a protocol about the draw. Raises UserError for n below 1, and where there are fewer images.
    """

    def __init__(
        self, place: str, holds: str, total: int, channels: int, resolution: Resolution | None, n: int | None, seed: int
    ):
        if n is not None and n < 1:
            raise UserError(f"n is {n}; give 1 or more images")
        if n is not None and n > total:
            raise UserError(f"{place} {holds} {plural(total, 'image')}, fewer than {n}; give a smaller n")
        self.place, self.channels, self.resolution = place, channels, resolution
        self.drawn: dict[str, Any] = {}
        self._indices = np.arange(total)
        if n is not None and n < total:
            self._indices, self.drawn = permutation_start(n, total, seed, "subset"), {"drawn_by_seed": seed}

    @property
    def n(self) -> int:
        return len(self._indices)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, without a resolution those of the first image."""
        if self.resolution is not None:
            return self.resolution
        height, width = self._read(self._indices[:1]).shape[2:]
        return height, width

    def describe(self) -> dict[str, Any]:
        """The part of a score's protocol about these images: where they are, a fingerprint, and their shape."""
        shape = describe_shape(self.channels, self.size, resized=self.resolution is not None)
        return self._describe_place() | {"resolution": self.resolution and self.resolution.plain()} | shape | self.drawn

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        images = self._read(self._indices[indices.start : indices.stop])
        if tuple(images.shape[2:]) != self.size:
            raise UserError(differ(self.place, tuple(images.shape), self.size))
        return images

    @abstractmethod
    def _read(self, indices: np.ndarray) -> UInt8[Tensor, "b c h w"]:
        """The images at these indices of the set."""

    @abstractmethod
    def _describe_place(self) -> dict[str, Any]:
        """The place of the images, and a `fingerprint` of the set."""


class ShardImages(StoredImages):
    """Images of shards. resolution, n, seed: see `StoredImages`. Raises UserError where some sample has no image."""

    def __init__(
        self, shards: ShardSet, channels: int, resolution: Resolution | None, *, n: int | None = None, seed: int = 0
    ):
        super().__init__(shards.paths[0], "and its set hold", shards.total, channels, resolution, n, seed)
        require_images(shards)
        self.shards = shards

    def _read(self, indices: np.ndarray) -> UInt8[Tensor, "b c h w"]:
        return sequential_reader.images(self.shards, indices, self.resolution, self.channels)

    def _describe_place(self) -> dict[str, Any]:
        return {"shards": self.shards.paths, "fingerprint": self.shards.fingerprint}

    def labels(self, indices: range) -> Int[Tensor, " b"]:
        """The labels of these images. Raises UserError where one is missing."""
        return sequential_reader.labels(self.shards, self._indices[indices.start : indices.stop])

    def encoded(self, indices: range) -> Iterator[tuple[str, bytes]]:
        """The place, in words, and the file of each of these images."""
        return sequential_reader.encoded_images(self.shards, self._indices[indices.start : indices.stop])

    def keys(self) -> list[str]:
        """The names of all images in their shards."""
        return sequential_reader.keys(self.shards, self._indices)


class TensorImages:
    """Images that are in memory already, with their labels where they have some."""

    def __init__(self, images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None = None):
        self._images, self._labels = images, labels

    @property
    def n(self) -> int:
        return len(self._images)

    def describe(self) -> dict[str, Any]:
        parts = [self._images] if self._labels is None else [self._images, self._labels]
        data = b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)
        return {"sha256": hashlib.sha256(data).hexdigest(), "shape": list(self._images.shape)}

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        return self._images[indices.start : indices.stop]

    def labels(self, indices: range) -> Int[Tensor, " b"]:
        """The labels of these images. Raises UserError where there are none."""
        if self._labels is None:
            raise UserError("the run is class-conditional; give the labels of the images")
        return self._labels[indices.start : indices.stop]


def require_image_tensor(images: object, shape: ImageShape) -> None:
    """Raise UserError unless the images are a uint8 tensor of the run's channels and size."""
    (height, width), channels = shape.resolution, shape.channels
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1:] != (channels, height, width)
    ):
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"the images are {given}; give a torch tensor of uint8 pixels from 0 to 255, "
            f"[n, {channels}, {height}, {width}] as the run was trained on"
        )


def require_label_tensor(labels: object, n: int, classes: int) -> None:
    """Raise UserError unless the labels are an int64 tensor [n] of the run's classes."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (n,):
        given = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"the labels are {given}; give a torch tensor of int64, [{n}], one label per image")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"the labels are {int(labels.min())} to {int(labels.max())}; this run has "
            f"{plural(classes, 'class', 'classes')}"
        )


def require_images(shards: ShardSet) -> None:
    """Raise UserError where some sample has no image."""
    lacking = shards.lacks_images()
    if lacking is not None:
        raise UserError(f"{lacking} (latents have none); give shards of images")
