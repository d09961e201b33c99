"""The sizes of images in lossless formats, each image a file of its own: what compression is compared with."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from diffpipe.evaluation.image_sources import ShardImages, TensorImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.train.runtime import Runtime

PNG, WEBP, JPEG_XL = "PNG", "WebP", "JPEG XL"
_OPTIONS: Mapping[str, dict[str, Any]] = {
    PNG: {"format": "PNG", "compress_level": 9},
    WEBP: {"format": "WEBP", "lossless": True, "quality": 100, "method": 6, "exact": True},
    JPEG_XL: {"format": "JXL", "lossless": True, "effort": 10, "use_container": False},
}


class FormatSizes(NamedTuple):
    """The bytes of all images together by format, and the number of their pixels and channels.

    missing: the reason for each format that this installation does not write.
    """

    bytes: Mapping[str, int]
    dims: int
    missing: Mapping[str, str]

    def bits_per_dim(self) -> dict[str, float]:
        """By format."""
        return {name: 8 * size / self.dims for name, size in self.bytes.items()}


def format_sizes(images: ShardImages | TensorImages, runtime: Runtime) -> FormatSizes:
    """The sizes of the images at the strongest lossless setting of each format. A collective."""
    formats, missing = [PNG, WEBP], {}
    try:
        importlib.import_module("pillow_jxl")  # Pillow writes JPEG XL once it is imported
        formats.append(JPEG_XL)
    except ImportError:
        missing[JPEG_XL] = "pip install 'diffpipe[jxl]' to see it"

    def sizes(chunk: range) -> tuple[Int64[Tensor, " formats"], int]:
        pixels = images.images(chunk)
        totals = [sum(_size(image, _OPTIONS[name]) for image in pixels.numpy()) for name in formats]
        return torch.tensor(totals), pixels.numel()

    totals, dims = zip(*map_over_ranks(images.n, sizes, runtime, "PNG and others"), strict=True)
    total = torch.stack(totals).sum(0).tolist()
    return FormatSizes(dict(zip(formats, total, strict=True)), sum(dims), missing)


def _size(image: UInt8[np.ndarray, "c h w"], options: Mapping[str, Any]) -> int:
    buffer = io.BytesIO()
    save: Callable[..., None] = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save
    save(buffer, **options)
    return buffer.tell()
