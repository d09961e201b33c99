"""Images moved from one class to another, as an image grid."""

from __future__ import annotations

import torch
from einops import rearrange
from PIL import Image

from diffpipe.data.loader import sequential_reader
from diffpipe.evaluation.attributes import STRENGTHS, ClassPair, Moved
from diffpipe.report.labelled_grid import labelled_grid
from diffpipe.resolution import Resolution


def attribute_grid(pair: ClassPair, moved: Moved, rows: int, title: str) -> Image.Image:
    """One row per image: the original, then the image moved by each strength. title: the run's."""
    images = moved.images[:rows]
    channels, resolution = images.shape[2], Resolution(*images.shape[3:])
    originals = sequential_reader.images(pair.shards, pair.places[pair.source][: len(images)], resolution, channels)
    cells = rearrange(torch.cat([originals[:, None], images], dim=1), "n k c h w -> (n k) c h w")
    source, target = pair.names
    title = f"{title}: {source} to {target}, along the difference of their mean latents"
    return labelled_grid(cells, ["image", *(f"{strength:g}" for strength in STRENGTHS)], title)
