"""The bits of an image in the shortest of several lossless codes: an upper bound on its complexity.

Serra et al. (2020, arXiv:1909.11480) take the shortest of PNG, JPEG 2000 and FLIF. Here WebP is added, and a code of
FLIF's kind replaces FLIF, which no common library writes: it predicts each pixel from its neighbours, learns the errors
by context within the image, and codes arithmetically. Nothing is trained on other images.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image, features
from torch import Tensor

from diffpipe.errors import UserError

# Pillow's options for the shortest lossless file of each format.
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "exact": True, "quality": 100, "method": 6},
    "JPEG2000": {"irreversible": False, "no_jp2": True},
}
CODECS = {"PNG": "zlib", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # by Pillow's names

SCALES = np.array([0.12, 0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 19.2, 38.4, 200.0])  # of the prediction errors, in grey levels
ACTIVITIES = np.array([1, 8, 24, 64, 160])  # the contexts' bounds: by how many grey levels the neighbours differ
SHARE = 0.02  # of an expert's weight that returns to all experts at each pixel: old evidence fades


def complexity(images: UInt8[Tensor, "n c h w"]) -> Float[np.ndarray, " n"]:
    """Bits per dimension of each image in the shortest of its codes: PNG, WebP, JPEG 2000, and `adaptive_bits`.

    The container does not count: the size of a file is that beyond the file of one black pixel. Nor do the two bits
    per image that say which code it is. Raises UserError where Pillow lacks one of the formats: the figure would mean
    something else.

    A negative log-likelihood in bits/dim minus this is the score of Serra et al.: how much worse the model's code is.
    """
    for name, codec in CODECS.items():
        if not features.check(codec):
            raise UserError(f"this Pillow lacks {name}, which complexity needs; install one that has it")
    pixels = images.numpy()
    container = {name: len(coded(np.zeros_like(pixels[0, :, :1, :1]), name)) for name in FORMATS}
    files = [min(len(coded(image, name)) - container[name] for name in FORMATS) for image in pixels]
    return np.minimum(8 * np.array(files, dtype=np.float64), adaptive_bits(pixels)) / pixels[0].size


def coded(image: UInt8[np.ndarray, "c h w"], name: str) -> bytes:
    """The lossless file of an image of 1 channel or 3 in one of FORMATS."""
    options = dict(FORMATS[name])
    if name == "JPEG2000":  # each resolution halves the one before, which needs two pixels
        options["num_resolutions"] = min(6, min(image.shape[1:]).bit_length())
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else rearrange(image, "c h w -> h w c")).save(buffer, name, **options)
    return buffer.getvalue()


def adaptive_bits(pixels: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, " n"]:
    """The length in bits of each image in an adaptive code; an arithmetic coder comes within two bits of it.

    Channel by channel, each in raster order. A pixel's distribution over 0..255 is a mixture of experts, one for
    each pair of a prediction and a scale: a Laplacian of this scale about this prediction, on the 256 values. An
    expert's weight is its posterior given the earlier pixels in the same context (how much the neighbours differ). Old
    evidence fades as in the fixed share of Herbster and Warmuth (1998). The decoder knows all of this, too.
    """
    values = np.arange(256)
    laplacians = np.exp(-np.abs(values[:, None, None] - values[:, None]) / SCALES)  # [prediction, value, scale]
    laplacians /= laplacians.sum(axis=1, keepdims=True)
    planes = rearrange(pixels.astype(np.int64), "n c h w -> c n h w")
    bits = np.zeros(len(pixels))
    for c, plane in enumerate(planes):
        bits += _plane_bits(plane, planes[c - 1] if c else None, laplacians)
    return bits


def _plane_bits(
    plane: Int[np.ndarray, "n h w"], before: Int[np.ndarray, "n h w"] | None, laplacians: Float[np.ndarray, "m v s"]
) -> Float[np.ndarray, " n"]:
    n, height, width = plane.shape
    images, bits = np.arange(n), np.zeros(n)
    weights = None
    for y in range(height):
        predictions, activity = _predict(plane, y)
        if before is not None:  # the errors of the channel before are similar
            error = before[:, y, :, None] - _predict(before, y)[0]
            predictions = np.concatenate([predictions, np.clip(predictions + error, 0, 255)], axis=-1)
        context = np.searchsorted(ACTIVITIES, activity, side="right")
        if weights is None:
            experts = predictions.shape[-1] * len(SCALES)
            weights = np.full((n, len(ACTIVITIES) + 1, experts), 1 / experts)
        for x in range(width):
            likelihoods = laplacians[predictions[:, x], plane[:, y, x, None]].reshape(n, -1)
            joint = weights[images, context[:, x]] * likelihoods
            probability = joint.sum(axis=1, keepdims=True)
            bits -= np.log2(probability[:, 0])
            weights[images, context[:, x]] = (1 - SHARE) * joint / probability + SHARE / joint.shape[1]
    return bits


def _predict(plane: Int[np.ndarray, "n h w"], y: int) -> tuple[Int[np.ndarray, "n w p"], Int[np.ndarray, "n w"]]:
    """Seven predictions of each pixel of row y from earlier pixels, and the activity: how much its neighbours differ.

    Both in grey levels. The first is the median edge detector of LOCO-I (Weinberger et al. 2000). The last two
    extrapolate a straight line, as in ramps. A pixel outside of the image equals the nearest known one.
    """
    row, above, two_above = (plane[:, max(y - back, 0)] for back in range(3))
    if y == 0:
        west = _shifted(row, np.zeros_like(row[:, :1]))
        north = corner = east = two_north = west
    else:
        west, corner = _shifted(row, above[:, :1]), _shifted(above, above[:, :1])
        north, east, two_north = above, np.concatenate([above[:, 1:], above[:, -1:]], axis=1), two_above
    plain = west + north - corner
    edge = np.clip(plain, np.minimum(west, north), np.maximum(west, north))
    lines = [plain, 2 * north - two_north, 2 * west - _shifted(west, west[:, :1])]
    predictions = np.stack([edge, west, north, (west + north) // 2, *lines], axis=-1)
    return np.clip(predictions, 0, 255), np.abs(west - corner) + np.abs(corner - north) + np.abs(north - east)


def _shifted(row: Int[np.ndarray, "n w"], first: Int[np.ndarray, "n 1"]) -> Int[np.ndarray, "n w"]:
    """Each pixel's western neighbour; that of the first pixel is `first`."""
    return np.concatenate([first, row[:, :-1]], axis=1)
