"""The data section of a config."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from diffpipe.config import Config
from diffpipe.data.decode.image import MAX_PIXELS
from diffpipe.data.remote.cache import DEFAULT_LIMIT, ShardCache
from diffpipe.data.remote.urls import is_remote, parse
from diffpipe.resolution import Resolution


class SourceConfig(Config):
    """One of several sets of shards to train on."""

    url: str | list[str]
    """Shards, in the forms that data.train takes."""
    weight: float = Field(default=1.0, gt=0)
    """The set's share of the samples, relative to the other sets' weights."""


class DataConfig(Config):
    """The shards, and how their samples become batches."""

    renamed: ClassVar[dict[str, str]] = {
        "lanes": "interleave",
        "window": "shuffle_window",
        "max_bad": "max_bad_samples",
        "on_change": "allow_changes",
    }

    train: str | list[str] | None = None
    """Training shards: a folder, tar, glob, brace pattern or URL (http, s3, gs), or a list of them. A URL may name
    environment variables, such as ${TOKEN}, which keeps secrets out of the config."""
    sources: tuple[SourceConfig, ...] = ()
    """Several weighted sets of shards instead of data.train: [{url: shards/a, weight: 3}, {url: shards/b}]."""
    test: str | list[str] | None = None
    """Held-out shards for validation and scores, in the forms that data.train takes."""
    batch_size: int = Field(ge=1)
    """The global batch: samples per optimizer step, over all processes and micro-batches. A resume may change it."""
    resolution: Resolution
    """Height and width of the images in pixels: one number for square ones, else [height, width]. Each image is resized
    to the smallest size that covers it, then cropped."""
    channels: Literal[1, 3] = 3
    """1: grey images; 3: RGB. Images of the other sort are converted."""
    labels: bool = False
    """Read each sample's class from its `.cls` member."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, for `diffpipe sample --label NAME`. Without any, training stores those of the index."""
    flip: bool = False
    """Mirror half of the samples from left to right."""
    crop: Literal["center", "random"] = "center"
    """The part that is cut out of an image of another aspect."""
    workers: int = Field(default=2, ge=0)
    """Loader processes per rank; 0: decode in the training process."""
    prefetch: int = Field(default=2, ge=1)
    """Micro-batches that each loader process holds ready."""
    interleave: int = Field(default=64, ge=1)
    """Places in the data set that a batch is drawn from at a time. Ranks share the reading of them. More mix better;
    fewer read longer stretches."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Samples that are shuffled among each other."""
    order_version: Literal[1, 2] | None = None
    """The version of the order of the samples. null: the checkpoint's where a run resumes, else the newest. 1 is that
    of checkpoints of earlier versions, whose epochs begin alike where the shards are few."""
    allow_changes: bool = False
    """Resume although the shards, or the sources' weights, have changed: at the same position, in epochs of the new
    data."""
    max_bad_samples: int = Field(default=0, ge=0)
    """Samples that cannot be read or decoded which a run tolerates: a bad sample keeps its position but contributes to
    no loss, gradient or metric. The next one ends the run."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=89_000_000)  # PIL warns above this
    """Pixels of the largest image that is decoded, by its header; a larger one is a bad sample."""
    cache: str | None = None
    """Folder for copies of remote shards; null: $DIFFPIPE_CACHE, else ~/.cache/diffpipe/shards."""
    cache_bytes: int = Field(default=DEFAULT_LIMIT, ge=1)
    """Bytes that the copies of remote shards may take on a machine; the default is 64 GiB."""
    least_rate: float | None = Field(default=None, ge=0)
    """Bytes per second that a server of remote shards has to send, else the run ends with an error; 0: any. null:
    $DIFFPIPE_LEAST_RATE, else 10000."""

    @model_validator(mode="after")
    def _train_or_sources(self) -> DataConfig:
        if (self.train is None) == (not self.sources):
            raise ValueError("give the shards either as data.train=PATH or as data.sources")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> DataConfig:
        """Refuse URLs with secrets: a config is written to the run directory and to checkpoints."""
        for patterns in (self.test or [], self.trained_on):
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                if is_remote(pattern):
                    parse(pattern)
        return self

    @property
    def shard_cache(self) -> ShardCache:
        """The cache for remote shards."""
        return ShardCache(self.cache, self.cache_bytes, self.least_rate)

    @property
    def trained_on(self) -> str | list[str]:
        """The shards of `train` or of all sources, in the forms that `diffpipe.data.load` takes."""
        if self.train is not None:
            return self.train
        return [url for source in self.sources for url in ([source.url] if isinstance(source.url, str) else source.url)]
