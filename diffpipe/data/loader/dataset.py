"""The map from positions of the stream to batches, of which each sample depends on (seed, position) alone."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import torch
from jaxtyping import Int64, Num

from diffpipe.data.config import DataConfig
from diffpipe.data.decode.image import decode_to
from diffpipe.data.decode.latents import LATENTS, are_latents, from_bytes
from diffpipe.data.index.scan import parse_class
from diffpipe.data.index.shard_index import Places
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.loader.buffer_pool import room
from diffpipe.data.loader.mixture import Mixture, order_of
from diffpipe.data.loader.order import Order
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import BadSampleError, UserError
from diffpipe.interfaces import Batch
from diffpipe.rng import KeyedRNG

_OPEN = 512  # of the 1024 files that a process may usually have open

_LABEL = ("cls",)
_Where = tuple[int, int, str]
"""A sample's shard, its number in it, and its key."""
_Place = tuple[int, int, int]
"""A member's offset, size and crc32."""


class Samples:
    """Batches by position. It holds nothing of what was asked for before but open files and windows of the order."""

    def __init__(self, config: DataConfig, shard_set: ShardSet, seed: int):
        self.config = config
        self.seed = seed
        self.order = order_of(shard_set, seed, config.interleave, config.shuffle_window)
        self.reader = Reader(shard_set, open_files=min(_OPEN, 2 * self.order.at_a_time))
        self._ahead = (
            order_of(shard_set, seed, config.interleave, config.shuffle_window) if self.reader.remote else None
        )
        self._begun = False
        self.latents = are_latents(shard_set)

    def batch(self, positions: Int64[np.ndarray, " b"], into: Num[np.ndarray, "b c h w"] | None = None) -> Batch:
        """The samples at these positions; their images or latents fill `into`, if it is given. Raises UserError."""
        config, shard_set, n = self.config, self.reader.shard_set, len(positions)
        words = None
        if config.flip or config.crop == "random":
            words = KeyedRNG(self.seed, torch.from_numpy(positions)).bits("augment", 3).numpy()
        shards, indices = self.order.at(positions)
        if self._ahead is not None:
            self._expect(self._ahead, shards, positions)
        keys = shard_set.keys(shards, indices)
        where = [*zip(shards.tolist(), indices.tolist(), keys, strict=True)]
        members = _rows(shard_set.places(shards, indices, (LATENTS,) if self.latents else IMAGE_EXTENSIONS))
        labels = _rows(shard_set.places(shards, indices, _LABEL)) if config.labels else None
        numbers, valid, complaints = np.zeros(n, np.int64), np.ones(n, bool), []
        images = into
        for i in range(n):
            try:
                number = self._label(where[i], labels[i]) if labels is not None else 0
                image = self._image(where[i], members[i], None if words is None else words[i])
            except BadSampleError as error:
                if not config.max_bad_samples:
                    raise
                number, image, valid[i] = 0, self._blank, False
                complaints.append(str(error))
            if images is None:
                images = room((n, *image.shape), image.dtype)
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"{shard_set.paths[where[i][0]]}: {keys[i]}: latents of {image.shape}, and others of "
                    f"{images.shape[1:]}; train on the shards of one codec"
                )
            numbers[i], images[i] = number, image
        assert images is not None
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(numbers) if config.labels else None,
            positions=torch.from_numpy(positions),
            keys=keys,
            valid=torch.from_numpy(valid) if config.max_bad_samples else None,
            complaints=complaints,
        )

    def _expect(self, order: Order | Mixture, shards: np.ndarray, positions: np.ndarray) -> None:
        """Have the remote shards of this batch fetched, and then those that come within two windows.

        The order is one of its own, for each keeps the windows that it was asked for last.
        """
        self.reader.expect(shards.tolist(), due=True)
        end = min(2 * self.config.shuffle_window, self.reader.shard_set.total)
        steps = np.array([end]) if self._begun else np.arange(0, end + 1, self.config.batch_size)
        self.reader.expect(order.at((steps[:, None] + positions).ravel())[0].tolist(), due=False)
        self._begun = True

    def _label(self, where: _Where, place: _Place) -> int:
        shard, index, _ = where
        data = self._member(shard, place)
        number = None if data is None else parse_class(data)
        return self.reader.label(shard, self.reader.shard_set.sample(shard, index)) if number is None else number

    def _image(self, where: _Where, place: _Place, words: np.ndarray | None) -> np.ndarray:
        (shard, index, key), config, reader = where, self.config, self.reader
        data = self._member(shard, place)
        if data is None:
            sample = reader.shard_set.sample(shard, index)
            data = reader.read(shard, sample, LATENTS) if self.latents else reader.image(shard, sample)
        name = f"{reader.shard_set.paths[shard]}: {key}"
        if self.latents:
            return from_bytes(data, name)
        size, most = config.resolution, config.max_pixels
        return decode_to(data, config.channels, name, size, config.crop, config.flip, words, most)

    def _member(self, shard: int, place: _Place) -> bytes | None:
        """What lies there, or None where it is to be read with more care: it is missing, or not what was indexed."""
        return self.reader.at(shard, *place) if place[1] >= 0 else None

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """What stands for a bad sample: zeros, of the shape of a good one."""
        config, shard_set = self.config, self.reader.shard_set
        if not self.latents:
            return np.zeros((config.channels, config.resolution, config.resolution), dtype=np.uint8)
        for shard, count in enumerate(shard_set.counts.tolist()):
            for i in range(count):
                with contextlib.suppress(BadSampleError):
                    data = self.reader.read(shard, shard_set.sample(shard, i), LATENTS)
                    return np.zeros_like(from_bytes(data, ""))
        raise UserError(f"{shard_set.paths[0]} and its set: none of the latents can be read; encode the images again")


def _rows(places: Places) -> list[_Place]:
    return [*zip(*(column.tolist() for column in places), strict=True)]


def check(config: DataConfig, shard_set: ShardSet, world: int = 1, accumulate: int = 1) -> None:
    """Raise UserError where the shards or the batch size cannot serve the config."""
    if config.batch_size < world * accumulate:
        raise UserError(
            f"data.batch_size={config.batch_size} cannot be split over {world} processes and {accumulate} "
            f"micro-batches (train.accumulate); make it {world * accumulate} or more"
        )
    latents, path = are_latents(shard_set), shard_set.lacking(*IMAGE_EXTENSIONS)
    if latents and (config.flip or config.crop != "center"):
        raise UserError(f"{path}: latents cannot be flipped or cropped; set data.flip=false and data.crop=center")
    if path is not None and not latents:
        raise UserError(f"{path}: some samples have no image; each needs one of {', '.join(IMAGE_EXTENSIONS)}")
    if config.labels:
        path = shard_set.lacking("cls")
        if path is not None:
            raise UserError(
                f"{path}: some samples have no .cls member; pack the shards with labels or set data.labels=false"
            )
        path = next((shard.path for shard in shard_set.shards if shard.classes is None), None)
        if path is not None:
            raise UserError(
                f"{path}: some .cls members are not integers ≥ 0; pack integer labels or set data.labels=false"
            )
