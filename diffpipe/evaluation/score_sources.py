"""The images that a score compares: of a run, a folder or shards."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.experiment.run import Run
from diffpipe.interfaces import ImageShape
from diffpipe.metrics.evaluate import ImageSource
from diffpipe.metrics.folder import FolderImages

SPLIT = "split"


class ScoreSources(NamedTuple):
    """The scored images, the reference, and the real images of the floor (None: the halves of the reference)."""

    generated: ImageSource
    reference: ImageSource
    floor: ImageSource | None


def open_images(place: str, shape: ImageShape | None, n: int | None) -> ImageSource:
    """The images of a folder or of shards; those of shards in this shape, None: as they are. Raises UserError."""
    path = Path(place)
    if path.is_dir() and not any(path.glob("*.tar")) and not (path / INDEX_NAME).exists():
        return FolderImages(path, n)
    channels, resolution = (shape.channels, shape.resolution) if shape else (3, None)
    return ShardImages(shard_set.load(place), channels, resolution, n=n)


def score_sources(generated: ImageSource, run: Run | None, reference: str, floor: str | None) -> ScoreSources:
    """The sources of a score of `generated`, which is of `run` if it is of one.

    floor: a folder or shards, or `split` (None, too) for the halves of the reference: the shards that a run was trained
    on are a place that the run names, and may be anywhere. Raises UserError.
    """
    shape = run.shape if run else None
    real = open_images(reference, shape, None)
    other = None if floor in (None, SPLIT) else open_images(floor, shape, generated.n)
    return ScoreSources(generated, real, other)
