"""Differences between the shards that a run was trained on and the shards that are there now."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.files import atomic_write, read_regular
from diffpipe.plural import plural

_NAMED_CHANGES = 4


class _ShardKey(NamedTuple):
    """A shard of a listing: its source, its name, and how many shards of that source and name come before it."""

    source: int
    name: str
    nth: int


def save_listing(shard_set: ShardSet, folder: Path) -> None:
    """Save the listing of these shards once, since a checkpoint holds only its fingerprint.

    At 100,000 shards the listing has a dozen megabytes. Its own sha256 is in its name, so it can be verified.
    """
    path = _listing_path(folder, shard_set.fingerprint)
    if not path.exists():
        atomic_write(path, shard_set.listing)


def describe_changes(fingerprint: str, shard_set: ShardSet, folder: Path) -> str:
    """How these shards differ from those of `fingerprint`, whose listing `save_listing` saved in `folder`."""
    path = _listing_path(folder, fingerprint)
    before = read_regular(path, follow_links=True) if path.exists() else b""
    if hashlib.sha256(before).hexdigest() != fingerprint:
        return f"its fingerprint was {fingerprint} and is {shard_set.fingerprint} ({path} with the details is missing)"
    changes = differences(before.decode(), shard_set.listing)
    more = f" and {plural(len(changes) - _NAMED_CHANGES, 'more change')}" if len(changes) > _NAMED_CHANGES else ""
    return "; ".join(changes[:_NAMED_CHANGES]) + more


def differences(before: str, now: str) -> list[str]:
    """A phrase for each shard that was changed, is missing or was added, and for changed weights.

    The listings are those of `ShardSet.listing` or `MixedShardSet.listing`. Where nothing else differs, the order of
    the shards does.
    """
    (weights, old), (weights_now, new) = _parse_listing(before), _parse_listing(now)
    several = max(len(weights), len(weights_now)) > 1
    changes = []
    for shard, (size, digest, members) in old.items():
        name = shard.name + (f" of source {shard.source}" if several else "")
        if shard not in new:
            changes.append(f"{name} is missing")
        elif new[shard][0] != size:
            changes.append(f"{name} had {plural(size, 'byte')} and has {new[shard][0]}")
        elif new[shard][1] != digest:
            changes.append(f"{name} has other bytes (sha256 {digest[:12]}… before, {new[shard][1][:12]}… now)")
        elif members is not None and new[shard][2] not in (members, None):
            changes.append(f"{name} has other samples, keys or labels in its index, though its bytes are the same")
    added = [shard for shard in new if shard not in old]
    changes += [f"{shard.name}{f' of source {shard.source}' if several else ''} was added" for shard in added]
    if weights != weights_now:
        changes.append(f"the weights of the sources were {', '.join(weights)} and are {', '.join(weights_now)}")
    return changes or ["the shards are the same in another order"]


def _listing_path(folder: Path, fingerprint: str) -> Path:
    return folder / f"shards-{fingerprint[:16]}.json"


def _parse_listing(listing: str) -> tuple[list[str], dict[_ShardKey, tuple[int, str, str | None]]]:
    """The weights of the sources, and the length and sha256 of each shard, and the hash of its members.

    Listings of earlier versions have no such hash.
    """
    tree: Any = json.loads(listing)
    sources = [{"weight": "1", "shards": tree}] if isinstance(tree, list) else tree["sources"]
    shards: dict[_ShardKey, tuple[int, str, str | None]] = {}
    for number, source in enumerate(sources):
        count: Counter[str] = Counter()
        for name, size, digest, *members in source["shards"]:
            shards[_ShardKey(number, name, count[name])] = size, digest, next(iter(members), None)
            count[name] += 1
    return [source["weight"] for source in sources], shards
