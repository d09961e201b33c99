"""The latents of images and the images of latents, on all processes; and places of images by class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet, number_of_classes
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import require_images
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.interfaces import Encodes, ImageShape, Stage
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG, permutation_start
from diffpipe.train.runtime import Runtime

BLOCK = 1000  # labels read at a time in search of a class


class LatentSpace:
    """The latent space of a stage that encodes. Raises UserError for one that does not.

    seed: of the random part of a latent, which is keyed by the image's place in its shards.
    """

    def __init__(self, stage: Stage, nets: Mapping[str, nn.Module], shape: ImageShape, runtime: Runtime, seed: int = 0):
        if not isinstance(stage, Encodes):
            raise UserError(
                f"a stage of {type(stage).__name__} has no latents of images; give a run of an autoencoder, VAE or flow"
            )
        self.stage: Encodes = stage
        self.nets, self.shape, self.runtime, self.seed = nets, shape, runtime, seed

    def of_shards(
        self, shards: ShardSet, places: Int[np.ndarray, " n"], labels: Int[Tensor, " n"] | None
    ) -> Float[Tensor, " n *latent"]:
        """The latents of the images at these places in the concatenated shards. A collective."""
        channels, resolution, _ = self.shape

        def images(chunk: range) -> Tensor:
            return sequential_reader.images(shards, places[chunk.start : chunk.stop], resolution, channels)

        return self._encode(len(places), images, torch.from_numpy(places), labels)

    def of_images(
        self, images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"] | None
    ) -> Float[Tensor, " n *latent"]:
        """The latents of images in memory; the place of an image is its index. A collective."""
        places = torch.arange(len(images))
        return self._encode(len(images), lambda chunk: images[chunk.start : chunk.stop], places, labels)

    def images_of(self, z: Float[Tensor, " n *latent"], labels: Int[Tensor, " n"] | None) -> UInt8[Tensor, "n c h w"]:
        """The images of latents. A collective."""

        def decode(chunk: range) -> Tensor:
            part = z[chunk.start : chunk.stop].to(self.runtime.device)
            return self.stage.decode_latents(self.nets, part, self._part(labels, chunk)).cpu()

        return torch.cat(map_over_ranks(len(z), decode, self.runtime, "decode"))

    def _encode(
        self, n: int, images: Callable[[range], Tensor], places: Tensor, labels: Tensor | None
    ) -> Float[Tensor, " n *latent"]:
        def encode(chunk: range) -> Tensor:
            rng = KeyedRNG(self.seed, places[chunk.start : chunk.stop].to(self.runtime.device))
            part = images(chunk).to(self.runtime.device)
            return self.stage.encode_latents(self.nets, part, self._part(labels, chunk), rng).cpu()

        return torch.cat(map_over_ranks(n, encode, self.runtime, "encode"))

    def _part(self, labels: Tensor | None, chunk: range) -> Tensor | None:
        return None if labels is None else labels[chunk.start : chunk.stop].to(self.runtime.device)


def labelled_shards(patterns: str) -> ShardSet:
    """Shards in which every sample has an image and a class. Raises UserError."""
    shards = shard_set.load(patterns)
    require_images(shards)
    path = shards.lacking("cls") or next((s.path for s in shards.shards if s.classes is None), None)
    if path is not None:
        raise UserError(
            f"{path}: some samples have no label that is an integer ≥ 0; pack the images with their classes"
        )
    return shards


def drawn(shards: ShardSet, n: int, seed: int) -> Int[np.ndarray, " _"]:
    """The places of up to n of the set's images, drawn without replacement."""
    return permutation_start(n, shards.total, seed, "subset")


def drawn_of_class(
    shards: ShardSet, classes: Collection[int], n: int, seed: int, *, least: int = 1
) -> dict[int, Int[np.ndarray, " _"]]:
    """The places of up to n images of each class, drawn without replacement.

    Raises UserError where there is no such class or fewer than `least` of its images.
    """
    known = number_of_classes(shards)
    unknown = [label for label in classes if not 0 <= label < known]
    if unknown:
        raise UserError(f"{unknown[0]} is no class of {shards.paths[0]} and its set; they are 0 to {known - 1}")
    places_of: dict[int, list[int]] = {label: [] for label in classes}
    order = permutation_start(BLOCK, shards.total, seed, "subset")
    for start in range(0, shards.total, BLOCK):
        if start == len(order):
            order = permutation_start(2 * start, shards.total, seed, "subset")
        block = order[start : start + BLOCK]
        labels = sequential_reader.labels(shards, block).numpy()
        for label, places in places_of.items():
            places.extend(block[labels == label][: n - len(places)].tolist())
        if all(len(places) == n for places in places_of.values()):
            break
    for label, places in places_of.items():
        if len(places) < least:
            raise UserError(
                f"{shards.paths[0]} and its set hold {plural(len(places), 'image')} of class "
                f"{class_names(shards)[label]}, and {least} are needed; give shards with more, or another class"
            )
    return {label: np.array(places, dtype=np.int64) for label, places in places_of.items()}


def class_names(shards: ShardSet) -> list[str]:
    """The classes' names in the index, else their numbers."""
    return shards.classes or [str(i) for i in range(number_of_classes(shards))]
