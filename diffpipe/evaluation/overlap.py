"""Images that two sets share, by hashes of their pixels: a floor is of images that the reference does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import GeneratedImages, StoredImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.score_sources import SPLIT, ScoreSources
from diffpipe.metrics.image_hashes import image_hashes
from diffpipe.plural import plural
from diffpipe.resolution import Resolution
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def shared_images(a: StoredImages, b: StoredImages, runtime: Runtime) -> int:
    """The number of images of `a` that are in `b`, too: equal in every pixel once both have one shape. A collective."""
    if _entire(a) == _entire(b) is not None:
        return a.n
    return _count_shared(_hashes(a, runtime), _hashes(b, runtime))


def overlap_check(
    sources: ScoreSources, runtime: Runtime, *, floor: str | None = None
) -> Callable[[Mapping[str, Int64[Tensor, " n"]]], None]:
    """The `on_hashes` of a score: it refuses a floor with images of the reference, and warns of scored ones in it.

    floor: its name in the message. The check raises UserError, before any image is generated.
    """

    def check(hashes: Mapping[str, Tensor]) -> None:
        if "generated" not in hashes:
            if "floor" in hashes:
                _require_distinct(_count_shared(hashes["floor"], hashes["reference"]), len(hashes["floor"]), floor)
        elif not isinstance(sources.generated, GeneratedImages):
            shared = _count_shared(hashes["generated"], hashes["reference"])
            if shared:
                print_on_rank_zero(
                    runtime,
                    f"the reference holds {shared} of the {plural(sources.generated.n, 'scored image')}, too: the "
                    "score is lower than that of other images",
                )

    return check


def check_floor(floor: StoredImages | None, reference: StoredImages, name: str | None, runtime: Runtime) -> None:
    """Raise UserError where the floor that an option names holds images of the reference. A collective."""
    if floor is not None:
        _require_distinct(shared_images(floor, reference, runtime), floor.n, name)


def _require_distinct(shared: int, n: int, name: str | None) -> None:
    """Raise UserError where images of a floor of n are in the reference, too."""
    if shared:
        raise UserError(
            f"the floor {name}: the reference holds {shared} of its {plural(n, 'image')}, too, so it would be lower "
            f"than other images can score; give images that the reference does not hold, or {SPLIT} for its halves"
        )


def floor_or_halves(floor: StoredImages, reference: StoredImages, runtime: Runtime) -> StoredImages | None:
    """The floor, or None, for the halves of the reference, where it holds images of the reference. A collective."""
    shared = shared_images(floor, reference, runtime)
    if not shared:
        return floor
    print_on_rank_zero(
        runtime,
        f"the reference holds {shared} of {plural(floor.n, 'training image')}, too: the floor is one half of the "
        "reference against the other",
    )
    return None


def _entire(images: StoredImages) -> tuple[str, Resolution | None] | None:
    """The fingerprint and shape of a whole set; None where only some of its images are taken."""
    return None if images.drawn else (images.describe()["fingerprint"], images.resolution)


def _count_shared(a: Int64[Tensor, " n"], b: Int64[Tensor, " m"]) -> int:
    """The number of hashes in `a` that are in `b`, too."""
    return int(np.isin(a.numpy(), b.numpy()).sum())


def _hashes(images: StoredImages, runtime: Runtime) -> Int64[Tensor, " n"]:
    """The hash of each image. A collective."""
    hash_chunk = lambda indices: image_hashes(images.images(indices))  # noqa: E731
    return torch.cat(map_over_ranks(images.n, hash_chunk, runtime, "look for shared images"))
