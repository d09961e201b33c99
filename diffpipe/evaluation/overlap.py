"""Images that two sets share, by hashes of their pixels: a floor is of images that the reference does not hold."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import GeneratedImages, StoredImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.score_sources import ScoreSources
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def shared_images(a: StoredImages, b: StoredImages, runtime: Runtime) -> int:
    """The number of images of `a` that are in `b`, too: equal in every pixel once both have one shape. A collective."""
    if _entire(a) == _entire(b) is not None:
        return a.n
    return int(np.isin(_hashes(a, runtime).numpy(), _hashes(b, runtime).numpy()).sum())


def check_overlap(sources: ScoreSources, runtime: Runtime, *, floor: str | None = None) -> None:
    """Refuse a floor with images of the reference, and warn of scored images that are in it. A collective.

    floor: its name in the message. Raises UserError.
    """
    check_floor(sources.floor, sources.reference, floor, runtime)
    if not isinstance(sources.generated, GeneratedImages):
        shared = shared_images(sources.generated, sources.reference, runtime)
        if shared:
            print_on_rank_zero(
                runtime,
                f"{shared} of the {sources.generated.n} scored images are in the reference, too: the score is lower "
                "than that of other images",
            )


def check_floor(floor: StoredImages | None, reference: StoredImages, name: str | None, runtime: Runtime) -> None:
    """Raise UserError where the floor that an option names holds images of the reference. A collective."""
    shared = 0 if floor is None else shared_images(floor, reference, runtime)
    if floor is not None and shared:
        raise UserError(
            f"--floor {name}: {shared} of its {floor.n} images are in the reference, too, so it would be lower "
            "than other images can score; give images that the reference does not hold, or --floor split for its halves"
        )


def floor_or_halves(floor: StoredImages, reference: StoredImages, runtime: Runtime) -> StoredImages | None:
    """The floor, or None, for the halves of the reference, where it holds images of the reference. A collective."""
    shared = shared_images(floor, reference, runtime)
    if not shared:
        return floor
    print_on_rank_zero(
        runtime,
        f"{shared} of {floor.n} training images are in the reference, too: the floor is one half of the reference "
        "against the other",
    )
    return None


def _entire(images: StoredImages) -> tuple[str, int | None] | None:
    """The fingerprint and shape of a whole set; None where only some of its images are taken."""
    return None if images.drawn else (images.describe()["fingerprint"], images.resolution)


def _hashes(images: StoredImages, runtime: Runtime) -> Int64[Tensor, " n"]:
    """64 bits of the sha256 of each image's pixels and shape. A collective."""

    def hash_chunk(indices: range) -> Tensor:
        digests = [hashlib.sha256(str(tuple(x.shape)).encode() + x.numpy().tobytes()) for x in images.images(indices)]
        return torch.tensor([int.from_bytes(digest.digest()[:8], "big", signed=True) for digest in digests])

    return torch.cat(map_over_ranks(images.n, hash_chunk, runtime, "look for shared images"))
