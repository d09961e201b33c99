"""Existing shards, to be packed again."""

from __future__ import annotations

import functools

import numpy as np

from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.loader.reader import Reader
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError


class ShardSource:
    """The samples of shards in their order. All members but the image stay unchanged."""

    def __init__(self, shards: ShardSet):
        self.shards, self.reader = shards, Reader(shards)
        self.classes = shards.classes
        self._ends = np.cumsum(shards.counts)

    def __len__(self) -> int:
        return self.shards.total

    @property
    def labels(self) -> list[int] | None:
        return self._labels

    @functools.cached_property
    def _labels(self) -> list[int] | None:
        if any(shard.classes is None for shard in self.shards.shards):
            return None
        return [
            self.reader.label(shard, self.shards.sample(shard, i)) for shard, i in map(self._locate, range(len(self)))
        ]

    def item(self, i: int) -> PackItem:
        shard, number = self._locate(i)
        sample = self.shards.sample(shard, number)
        where = f"{self.shards.paths[shard]}: {sample.key}"
        members = {extension: self.reader.read(shard, sample, extension) for extension in sample.members}
        extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if extension is None:
            return PackItem(where, None, None, members)
        return PackItem(f"{where}.{extension}", members.pop(extension), extension, members)

    def names(self) -> list[str]:
        return [self.shards.sample(*self._locate(i)).key for i in range(len(self))]

    def column(self, name: str) -> list[str]:
        raise UserError(f"{self.shards.paths[0]}: shards have no columns; split them by a pattern on their keys")

    def _locate(self, i: int) -> tuple[int, int]:
        """The shard of sample i, and its number there."""
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, i - int(self._ends[shard] - self.shards.counts[shard])
