"""Batches by position in the stream: each sample depends on (seed, position) alone."""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Num

from diffpipe.data.config import DataConfig
from diffpipe.data.decode.image import decode_to
from diffpipe.data.decode.latents import LATENTS, are_latents, from_bytes
from diffpipe.data.index.scan import parse_class
from diffpipe.data.index.shard_index import Member, MemberLocations
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.loader.buffer_pool import empty_batch
from diffpipe.data.loader.mixture import Mixture, build_order
from diffpipe.data.loader.order import Order
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import BadSampleError, UserError, all_of
from diffpipe.interfaces import Batch
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG

_OPEN_FILES = 512  # of the 1024 that a process usually may have


class _Entry(NamedTuple):
    """One sample to load: its shard, its number there, its key, and where its image (or latents) and label are."""

    shard: int
    number: int
    key: str
    image: Member
    label: Member | None


class Dataset:
    """A map from positions of the stream to batches. It is stateless but for open files and cached shuffle windows."""

    def __init__(self, config: DataConfig, shard_set: ShardSet, seed: int):
        self.config = config
        self.seed = seed
        self.order = build_order(shard_set, seed, config)
        self.reader = Reader(shard_set, open_files=open_files(self.order))
        self.latents = are_latents(shard_set)
        # An order caches the windows that were used last, so looking ahead needs one of its own.
        self._order_ahead: Order | Mixture | None = None
        if self.reader.remote:
            self._order_ahead = build_order(shard_set, seed, config)
        self._prefetching = False

    def batch(self, positions: Int64[np.ndarray, " b"], into: Num[np.ndarray, "b c h w"] | None = None) -> Batch:
        """The samples at these positions. Their images or latents are written to `into`, if given. Raises UserError."""
        config, n = self.config, len(positions)
        words = None
        if config.flip or config.crop == "random":
            words = KeyedRNG(self.seed, torch.from_numpy(positions)).bits("augment", 3).numpy()
        entries = self._entries(positions)
        labels, valid, errors = np.zeros(n, np.int64), np.ones(n, bool), []
        images = into
        for i, entry in enumerate(entries):
            try:
                label = 0 if entry.label is None else self._label(entry, entry.label)
                image = self._image(entry, None if words is None else words[i])
            except BadSampleError as error:
                if not config.max_bad_samples:
                    raise
                label, image, valid[i] = 0, self._blank, False
                errors.append(str(error))
            if images is None:
                images = empty_batch((n, *image.shape), image.dtype)
            if image.shape != images.shape[1:]:
                raise UserError(
                    f"{self._path(entry)}: {entry.key}: latents of {image.shape}, and others of {images.shape[1:]}; "
                    "train on the shards of one codec"
                )
            labels[i], images[i] = label, image
        assert images is not None
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(labels) if config.labels else None,
            positions=torch.from_numpy(positions),
            keys=[entry.key for entry in entries],
            valid=torch.from_numpy(valid) if config.max_bad_samples else None,
            errors=errors,
        )

    def _entries(self, positions: np.ndarray) -> list[_Entry]:
        """The samples at these positions, after asking for their shards to be fetched if they are remote."""
        shard_set = self.reader.shard_set
        shards, numbers = self.order.at(positions)
        if self._order_ahead is not None:
            self._prefetch(self._order_ahead, shards, positions)
        keys = shard_set.keys(shards, numbers)
        extensions = (LATENTS,) if self.latents else IMAGE_EXTENSIONS
        images = _members(shard_set.locations(shards, numbers, extensions))
        labels: list[Member] | list[None] = [None] * len(positions)
        if self.config.labels:
            labels = _members(shard_set.locations(shards, numbers, ("cls",)))
        return [_Entry(*entry) for entry in zip(shards.tolist(), numbers.tolist(), keys, images, labels, strict=True)]

    def _prefetch(self, order: Order | Mixture, shards: np.ndarray, positions: np.ndarray) -> None:
        """Fetch the remote shards of this batch in the background, then those that come within two shuffle windows."""
        self.reader.prefetch(shards.tolist(), due=True)
        end = min(2 * self.config.shuffle_window, self.reader.shard_set.total)
        steps = np.array([end]) if self._prefetching else np.arange(0, end + 1, self.config.batch_size)
        self.reader.prefetch(order.at((steps[:, None] + positions).ravel())[0].tolist(), due=False)
        self._prefetching = True

    def _label(self, entry: _Entry, location: Member) -> int:
        data = self._member(entry, location)
        label = None if data is None else parse_class(data)
        if label is None:  # missing, damaged or not a number: read again with every check
            return self.reader.label(entry.shard, self.reader.shard_set.sample(entry.shard, entry.number))
        return label

    def _image(self, entry: _Entry, words: np.ndarray | None) -> np.ndarray:
        config, reader = self.config, self.reader
        data = self._member(entry, entry.image)
        if data is None:  # missing or damaged: read again with every check
            sample = reader.shard_set.sample(entry.shard, entry.number)
            data = reader.read(entry.shard, sample, LATENTS) if self.latents else reader.image(entry.shard, sample)
        where = f"{self._path(entry)}: {entry.key}"
        if self.latents:
            return from_bytes(data, where)
        return decode_to(
            data, config.channels, where, config.resolution, config.crop, config.flip, words, config.max_pixels
        )

    def _member(self, entry: _Entry, location: Member) -> bytes | None:
        """The bytes of a member, or None where it is missing or its bytes are not those that were indexed."""
        return self.reader.at(entry.shard, *location) if location.size >= 0 else None

    def _path(self, entry: _Entry) -> str:
        return self.reader.shard_set.paths[entry.shard]

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """Zeros in the shape of a good sample; they take the place of a bad one."""
        config, shard_set = self.config, self.reader.shard_set
        if not self.latents:
            return np.zeros((config.channels, *config.resolution), dtype=np.uint8)
        for shard, count in enumerate(shard_set.counts.tolist()):
            for i in range(count):
                with contextlib.suppress(BadSampleError):
                    data = self.reader.read(shard, shard_set.sample(shard, i), LATENTS)
                    return np.zeros_like(from_bytes(data, ""))
        raise UserError(f"{shard_set.paths[0]} and its set: none of the latents can be read; encode the images again")


def open_files(order: Order | Mixture) -> int:
    """The most shards that a process has open at a time."""
    return min(_OPEN_FILES, 2 * order.concurrent_shards)


def _members(locations: MemberLocations) -> list[Member]:
    return [Member(*row) for row in zip(*(column.tolist() for column in locations), strict=True)]


def check_split(config: DataConfig, world: int, accumulate: int) -> None:
    """Raise UserError where a batch has fewer samples than there are micro-batches on all processes."""
    if config.batch_size < world * accumulate:
        raise UserError(
            f"data.batch_size={config.batch_size} cannot be split over {plural(world, 'process', 'processes')} and "
            f"{plural(accumulate, 'micro-batch', 'micro-batches')} (train.accumulate); make it {world * accumulate} or "
            "more"
        )


def check(config: DataConfig, shard_set: ShardSet, world: int = 1, accumulate: int = 1) -> None:
    """Raise UserError where the shards or the batch size do not fit the config."""
    all_of(
        lambda: check_split(config, world, accumulate),
        lambda: _check_images(config, shard_set),
        lambda: _check_labels(shard_set) if config.labels else None,
    )


def _check_images(config: DataConfig, shard_set: ShardSet) -> None:
    latents = are_latents(shard_set)
    if latents and (config.flip or config.crop != "center"):
        path = shard_set.paths[0]
        raise UserError(f"{path}: latents cannot be flipped or cropped; set data.flip=false and data.crop=center")
    lacking = shard_set.lacks_images()
    if lacking is not None and not latents:
        raise UserError(f"{lacking}; each needs one of {', '.join(IMAGE_EXTENSIONS)}")


def _check_labels(shard_set: ShardSet) -> None:
    path = shard_set.lacking("cls")
    if path is not None:
        raise UserError(
            f"{path}: some samples have no .cls member; pack the shards with labels or set data.labels=false"
        )
    path = next((shard.path for shard in shard_set.shards if shard.classes is None), None)
    if path is not None:
        raise UserError(f"{path}: some .cls members are not integers ≥ 0; pack integer labels or set data.labels=false")
