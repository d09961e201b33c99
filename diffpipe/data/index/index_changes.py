"""The shards that differ between an index and the one that it replaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffpipe.plural import plural

_NAMED_SHARDS = 4


class IndexChanges(NamedTuple):
    """The names of shards that are new, gone or changed. samples: how many more there are now; negative: fewer."""

    new: list[str]
    gone: list[str]
    changed: list[str]
    samples: int

    def __str__(self) -> str:
        """Such as `1 shard is new (c.tar), 2 shards have changed (a.tar, b.tar), 3 samples more`."""
        kinds = ((self.new, "is new", "are new"), (self.gone, "is gone", "are gone"))
        kinds += ((self.changed, "has changed", "have changed"),)
        phrases = [
            f"{plural(len(names), f'shard {one}', f'shards {several}')} ({_listed(names)})"
            for names, one, several in kinds
            if names
        ]
        if not phrases:
            return "no shard has changed"
        more = f"{plural(abs(self.samples), 'sample')} {'more' if self.samples > 0 else 'fewer'}"
        return ", ".join([*phrases, more if self.samples else "as many samples"])


def index_changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> IndexChanges:
    """The changes between the shards of two indices, each by name as in `ShardIndex.shards`."""
    changed = [name for name in now if name in before and now[name]["sha256"] != before[name]["sha256"]]
    samples = [sum(shard["samples"] for shard in shards.values()) for shards in (now, before)]
    new, gone = ([name for name in one if name not in other] for one, other in ((now, before), (before, now)))
    return IndexChanges(new, gone, changed, samples[0] - samples[1])


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _NAMED_SHARDS} more"] if len(names) > _NAMED_SHARDS else []
    return ", ".join([*names[:_NAMED_SHARDS], *more])
