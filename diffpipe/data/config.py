"""The data section of a config."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from diffpipe.config import Config
from diffpipe.data.decode.image import MAX_PIXELS
from diffpipe.data.remote.cache import LIMIT, Cache
from diffpipe.data.remote.urls import is_remote, parse


class SourceConfig(Config):
    """One of several sets of shards to train on. url: as `data.train`; weight: its share, relative to the others'."""

    url: str | list[str]
    weight: float = Field(default=1.0, gt=0)


class DataConfig(Config):
    """The shards, and how their samples become batches."""

    renamed: ClassVar[dict[str, str]] = {
        "lanes": "interleave",
        "window": "shuffle_window",
        "max_bad": "max_bad_samples",
        "on_change": "allow_changes",
    }

    train: str | list[str] | None = None
    """Shards, as `diffpipe.data.index.shard_set.load` takes them."""
    sources: tuple[SourceConfig, ...] = ()
    """Several sets of shards in the place of `train`, each with its weight: [{url: …, weight: 3}, {url: …}]."""
    test: str | list[str] | None = None
    """Shards that are held out."""
    batch_size: int = Field(ge=1)
    """The global batch of an optimizer step. A resume may change it."""
    resolution: int = Field(ge=1)
    channels: Literal[1, 3] = 3
    labels: bool = False
    """Read each sample's `.cls`."""
    flip: bool = False
    crop: Literal["center", "random"] = "center"
    workers: int = Field(default=2, ge=0)
    """Loader processes a rank."""
    prefetch: int = Field(default=2, ge=1)
    """Micro-batches that each of them holds ready."""
    interleave: int = Field(default=64, ge=1)
    """From how many places of the data a batch is drawn at a time, of which ranks share out the reading: see
    `diffpipe.data.loader.order.Order`."""
    shuffle_window: int = Field(default=16384, ge=1)
    """How many samples are shuffled among each other."""
    allow_changes: bool = False
    """Whether a resume goes on where the shards, or the weights of sources, have changed: at its position, and an epoch
    is one of the new data."""
    max_bad_samples: int = Field(default=0, ge=0)
    """How many samples that cannot be read or decoded a run leaves out; the next one ends it, and 0 is the first."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=89_000_000)  # PIL warns of more, and of yet more refuses
    """An image with more of them is not decoded, and is such a sample."""
    cache: str | None = None
    """The folder that remote shards are kept in, by default $DIFFPIPE_CACHE or ~/.cache/diffpipe/shards."""
    cache_bytes: int = Field(default=LIMIT, ge=1)
    """How many bytes of them."""

    @model_validator(mode="after")
    def _one_of_both(self) -> DataConfig:
        if (self.train is None) == (not self.sources):
            raise ValueError("give the shards as data.train=PATH or as data.sources, and the other not or as null")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> DataConfig:
        """A config is written into the run directory and into checkpoints."""
        for named in (self.test or [], self.trained_on):
            for place in [named] if isinstance(named, str) else named:
                if is_remote(place):
                    parse(place)
        return self

    @property
    def shard_cache(self) -> Cache:
        """Where remote shards are kept."""
        return Cache(self.cache, self.cache_bytes)

    @property
    def trained_on(self) -> str | list[str]:
        """All that is trained on, whatever its weight, as `diffpipe.data.index.shard_set.load` takes it."""
        if self.train is not None:
            return self.train
        urls = ([source.url] if isinstance(source.url, str) else source.url for source in self.sources)
        return [url for each in urls for url in each]
