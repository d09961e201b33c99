"""Hashes of images: equal images have equal hashes, whatever they lie in."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


def image_hashes(images: UInt8[Tensor, "b c h w"]) -> Int64[Tensor, " b"]:
    """64 bits of the sha256 of each image's shape and pixels."""
    digests = [hashlib.sha256(str(tuple(x.shape)).encode() + x.numpy().tobytes()) for x in images.cpu()]
    return torch.tensor([int.from_bytes(digest.digest()[:8], "big", signed=True) for digest in digests])


def split_by_hash(hashes: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " m"]]:
    """The indices of two halves: the ceil(n/2) images with the lowest hashes, and the others, each in order of hashes.

    Which images are in a half does not depend on the order of the set, and copies of an image are in the same half but
    for those of the one image at the border.
    """
    order = hashes.argsort(stable=True)
    return order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
