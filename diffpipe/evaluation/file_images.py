"""Images of folders, archives and arrays by index, decoded and brought to a shape as those of shards are."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from diffpipe.data.decode.stack import stack_images
from diffpipe.data.packing.image_files import open_image_files
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import describe_shape, drawn_indices, require_size


class FileImages:
    """The images of a folder, a zip, an npz or another source of `pack`, in the order in which `pack` reads them.

    n, seed, resolution: as of `ShardImages`. Raises UserError where there are fewer than n images, or none.
    """

    def __init__(self, place: str, channels: int, resolution: int | None, *, n: int | None = None, seed: int = 0):
        self._files = open_image_files(place)
        if n is not None and n > len(self._files):
            raise UserError(f"{place} holds {len(self._files)} images, fewer than {n}; give a smaller n")
        self.place, self.channels, self.resolution = place, channels, resolution
        self._indices, self.drawn = drawn_indices(len(self._files), n, seed)

    @property
    def n(self) -> int:
        return len(self._indices)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, without a resolution those of the first image."""
        if self.resolution is not None:
            return self.resolution, self.resolution
        height, width = self._read(range(1)).shape[2:]
        return height, width

    def describe(self) -> dict[str, Any]:
        """The place, a sha256 over the names and the contents of the images, and their shape."""
        shape = describe_shape(self.channels, self.size, resized=self.resolution is not None)
        return (
            {"folder": self.place, "fingerprint": self._fingerprint, "resolution": self.resolution} | shape | self.drawn
        )

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        return require_size(self._read(indices), self.size, self.place)

    def _read(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        chosen = self._indices[indices.start : indices.stop].tolist()
        return stack_images((self._files.encoded(i) for i in chosen), self.resolution, self.channels)

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for i in self._indices.tolist():
            digest.update(f"{self._files.name(i)}\0{hashlib.sha256(self._files.encoded(i)[1]).hexdigest()}\n".encode())
        return digest.hexdigest()
