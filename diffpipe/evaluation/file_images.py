"""Images of folders, archives and arrays by index, decoded and brought to a shape as those of shards are."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.data.decode.stack import stack_images
from diffpipe.data.packing.image_files import open_image_files
from diffpipe.evaluation.image_sources import StoredImages
from diffpipe.resolution import Resolution


class FileImages(StoredImages):
    """The images of a folder, a zip, an npz or another source of `pack`, in the order in which `pack` reads them.

    n, seed, resolution: see `StoredImages`. Raises UserError where there are no images.
    """

    def __init__(
        self, place: str, channels: int, resolution: Resolution | None, *, n: int | None = None, seed: int = 0
    ):
        self._files = open_image_files(place)
        super().__init__(place, "holds", len(self._files), channels, resolution, n, seed)

    def _read(self, indices: np.ndarray) -> UInt8[Tensor, "b c h w"]:
        return stack_images((self._files.encoded(i) for i in indices.tolist()), self.resolution, self.channels)

    def _describe_place(self) -> dict[str, Any]:
        return {"folder": self.place, "fingerprint": self._fingerprint}

    @functools.cached_property
    def _fingerprint(self) -> str:
        """A sha256 over the names and the contents of the images."""
        digest = hashlib.sha256()
        for i in self._indices.tolist():
            digest.update(f"{self._files.name(i)}\0{hashlib.sha256(self._files.encoded(i)[1]).hexdigest()}\n".encode())
        return digest.hexdigest()
