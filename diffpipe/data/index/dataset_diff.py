"""What has changed between the data that a run was trained on and the data that is there now, shard by shard."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.files import atomic_write

_NAMED = 4


class _Row(NamedTuple):
    """A shard of a listing, by its source, its name and how many of that name stand before it there."""

    source: int
    name: str
    nth: int


def keep_listing(shard_set: ShardSet, folder: Path) -> None:
    """Write down, once, which shards make up this fingerprint: a checkpoint holds the fingerprint alone.

    At 100,000 shards the listing is a dozen megabytes. It has its own sha256 in its name, so it vouches for itself.
    """
    path = _place(folder, shard_set.fingerprint)
    if not path.exists():
        atomic_write(path, shard_set.listing)


def what_changed(fingerprint: str, shard_set: ShardSet, folder: Path) -> str:
    """In words, what differs between the data of `fingerprint`, whose listing is kept in `folder`, and this."""
    path = _place(folder, fingerprint)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if hashlib.sha256(before.encode()).hexdigest() != fingerprint:
        return f"its fingerprint was {fingerprint} and is {shard_set.fingerprint} ({path}, which told more, is gone)"
    found = differences(before, shard_set.listing)
    more = f" and {len(found) - _NAMED} more changes" if len(found) > _NAMED else ""
    return "; ".join(found[:_NAMED]) + more


def differences(before: str, now: str) -> list[str]:
    """A few words for each shard that was changed, is missing or was added; else for what differs in their order.

    The listings are as `ShardSet.listing` and its kin have them.
    """
    (weights, old), (weights_now, new) = _read(before), _read(now)
    several = max(len(weights), len(weights_now)) > 1
    found = []
    for row, (size, digest) in old.items():
        name = row.name + (f" of source {row.source}" if several else "")
        if row not in new:
            found.append(f"{name} is missing")
        elif new[row][0] != size:
            found.append(f"{name} had {size} bytes and has {new[row][0]}")
        elif new[row][1] != digest:
            found.append(f"{name} has other bytes (sha256 {digest[:12]}… before, {new[row][1][:12]}… now)")
    found += [f"{row.name}{f' of source {row.source}' if several else ''} was added" for row in new if row not in old]
    if weights != weights_now:
        found.append(f"the weights of the sources were {_listed(weights)} and are {_listed(weights_now)}")
    return found or ["the shards are the same in another order"]


def _place(folder: Path, fingerprint: str) -> Path:
    return folder / f"shards-{fingerprint[:16]}.json"


def _read(listing: str) -> tuple[list[str], dict[_Row, tuple[int, str]]]:
    """The sources' weights, and each shard's length and hash."""
    tree: Any = json.loads(listing)
    sources = [{"weight": "1", "shards": tree}] if isinstance(tree, list) else tree["sources"]
    rows: dict[_Row, tuple[int, str]] = {}
    for number, source in enumerate(sources):
        seen: Counter[str] = Counter()
        for name, size, digest in source["shards"]:
            rows[_Row(number, name, seen[name])] = size, digest
            seen[name] += 1
    return [source["weight"] for source in sources], rows


def _listed(weights: list[str]) -> str:
    return ", ".join(weights)
