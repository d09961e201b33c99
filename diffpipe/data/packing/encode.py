"""The form in which images are written: unchanged, or resized, on a background, in another format."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from diffpipe.data.decode.image import decode, fit, refused
from diffpipe.data.decode.image_header import format_of
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError
from diffpipe.resolution import Resolution

Format = Literal["keep", "png", "jpeg", "webp"]
_KEPT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class Encoding:
    """How images are encoded. Each image is decoded in any case, so that a broken one is found.

    resolution: images are resized to cover it and cropped at the centre; None: they keep their size. format: "keep"
    leaves the bytes of PNG, JPEG and WebP unchanged where neither the resolution nor the background changes a pixel,
    and writes PNG otherwise; the other formats encode every image again, without metadata. quality: of JPEG (at full
    chroma resolution) and WebP, 1 to 100. background: the colour under transparent pixels; None: white, but unchanged
    files stay transparent.
    """

    resolution: Resolution | None = None
    format: Format = "keep"
    quality: int = 95
    background: str | None = None

    def members(self, item: PackItem) -> dict[str, bytes]:
        """The sample's members by extension, its image first. Raises UserError."""
        if item.image is None:
            return item.members
        extension, data = self._encode(item, item.image)
        second = next((e for e in IMAGE_EXTENSIONS if e in item.members), None)
        if second is not None and data is not item.image:
            raise UserError(f"{item.where}: has a .{second} beside its image; pack such samples unchanged")
        return {extension: data, **item.members}

    def _encode(self, item: PackItem, data: bytes | np.ndarray) -> tuple[str, bytes]:
        if isinstance(data, bytes):
            image = decode(data, None, item.where, self.background or "white")
            kind = _KEPT.get(format_of(data))
            fits = self.resolution is None or Resolution(image.height, image.width) == self.resolution
            changed = self.background is not None and _is_transparent(data)
            if self.format == "keep" and kind and fits and not changed:
                return item.extension or kind, data
        else:
            image = Image.fromarray(data)
        if self.resolution is not None:
            with refused(item.where):
                image = fit(image, self.resolution)
        return self._save(image)

    def _save(self, image: Image.Image) -> tuple[str, bytes]:
        image.info = {}  # PIL would write its colour profile and text
        buffer = io.BytesIO()
        if self.format == "jpeg":
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0, optimize=True)
            return "jpg", buffer.getvalue()
        if self.format == "webp":
            image.save(buffer, "WEBP", quality=self.quality)
            return "webp", buffer.getvalue()
        image.save(buffer, "PNG", optimize=True)
        return "png", buffer.getvalue()


def _is_transparent(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return image.has_transparency_data
