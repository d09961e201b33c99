"""The images that a score compares, all of one shape: of a run, or of whatever holds images."""

from __future__ import annotations

import os
from typing import NamedTuple

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.packing.hub import SCHEME
from diffpipe.data.remote.urls import is_remote
from diffpipe.errors import UserError
from diffpipe.evaluation.counts import DEFAULT_COUNT
from diffpipe.evaluation.file_images import FileImages
from diffpipe.evaluation.image_sources import GeneratedImages, ShardImages, StoredImages
from diffpipe.files import user_path
from diffpipe.resolution import Resolution
from diffpipe.run_folder import is_run

SPLIT = "split"


class ScoreSources(NamedTuple):
    """The scored images, the reference, and the real images of the floor (None: the halves of the reference)."""

    generated: GeneratedImages | StoredImages
    reference: StoredImages
    floor: StoredImages | None


def open_images(
    place: str | os.PathLike[str], channels: int, resolution: Resolution | None, n: int | None = None
) -> StoredImages:
    """The images of a folder, a zip, an npz or shards, all or n of them, in this shape. Raises UserError.

    resolution: as of `ShardImages`.
    """
    place = os.fspath(place)
    if is_run(user_path(place)):
        raise UserError(
            f"{place}: a run, and no images; a run is scored as the first argument of diffpipe eval, or by "
            "diffpipe.load(RUN).score; here give images, such as those it has sampled"
        )
    if _are_files(place):
        return FileImages(place, channels, resolution, n=n)
    if not (is_remote(place) or set(place) & set("*?[{") or user_path(place).exists()):
        raise UserError(
            f"{place}: there is nothing of this name; give a run, a folder of images, a zip, an npz, or shards"
        )
    return ShardImages(shard_set.load(place), channels, resolution, n=n)


def floor_count(floor: str | None) -> int:
    """The number of images to generate by default: 1000, or as many as the floor has where these are fewer."""
    return DEFAULT_COUNT if floor in (None, SPLIT) else min(DEFAULT_COUNT, open_images(floor, 3, None).n)


def score_sources(
    generated: GeneratedImages | StoredImages, reference: str, floor: str | None, resolution: Resolution | None
) -> ScoreSources:
    """The sources of a score of `generated`, in the shape of its images.

    resolution: None keeps the size of stored images, which must be the same on both sides. floor: a place of as many
    images as are scored; `split` or None: the halves of the reference. Raises UserError.
    """
    channels = generated.shape.channels if isinstance(generated, GeneratedImages) else generated.channels
    real = open_images(reference, channels, resolution)
    other = None if floor in (None, SPLIT) else open_images(floor, channels, resolution, generated.n)
    sources = ScoreSources(generated, real, other)
    for name, source in (("the reference", real), ("the floor", other)):
        if source is not None and source.size != generated.size:
            raise UserError(
                f"{name} holds images of {_shown(source.size)} and the scored ones have {_shown(generated.size)} "
                f"(height x width); give a resolution to bring all to one size"
            )
    return sources


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _are_files(place: str) -> bool:
    """Whether this is a source of `pack` that is no set of shards."""
    path = user_path(place)
    if path.is_dir():
        return not any(path.glob("*.tar")) and not (path / INDEX_NAME).exists()
    return place.startswith(SCHEME) or (path.is_file() and path.suffix.lower() != ".tar")
