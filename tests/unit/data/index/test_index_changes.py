"""What differs between an index and the one that it replaces."""

from __future__ import annotations

from typing import Any

from diffpipe.data.index.index_changes import IndexChanges, index_changes


def shards(**samples: int) -> dict[str, dict[str, Any]]:
    """Shards by name with so many samples, and a hash by their number."""
    return {f"{name}.tar": {"samples": n, "sha256": f"{n}"} for name, n in samples.items()}


def test_shards_are_new_gone_or_changed() -> None:
    changes = index_changes(shards(a=1, b=2, c=3), shards(b=2, c=5, d=4))
    assert changes == IndexChanges(["d.tar"], ["a.tar"], ["c.tar"], 5)
    assert str(changes) == (
        "1 shard is new (d.tar), 1 shard is gone (a.tar), 1 shard has changed (c.tar), 5 samples more"
    )


def test_nothing_has_changed() -> None:
    changes = index_changes(shards(a=1), shards(a=1))
    assert not changes.samples
    assert str(changes) == "no shard has changed"


def test_of_many_shards_a_few_are_named() -> None:
    names = {f"s{i}": 1 for i in range(7)}
    assert str(index_changes(shards(**names), {})) == (
        "7 shards are gone (s0.tar, s1.tar, s2.tar, s3.tar, and 3 more), 7 samples fewer"
    )
    one = {"a.tar": {"samples": 1, "sha256": "x"}}
    assert str(index_changes(shards(a=1), one)) == "1 shard has changed (a.tar), as many samples"
