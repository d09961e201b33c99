"""The differences between two data sets are named shard by shard."""

from __future__ import annotations

import json
from pathlib import Path

from diffpipe.data import load
from diffpipe.data.index.dataset_diff import describe_changes, differences, save_listing
from diffpipe.data.index.write_index import write_index
from tests.support.tars import write_shards

A, B, C = ["a.tar", 10, "a" * 64], ["b.tar", 20, "b" * 64], ["c.tar", 30, "c" * 64]


def changes(before: list, now: list) -> list[str]:
    return differences(json.dumps(before), json.dumps(now))


def test_each_shard_that_differs_is_named() -> None:
    assert changes([A, B], [A, ["b.tar", 21, "c" * 64]]) == ["b.tar had 20 bytes and has 21"]
    assert changes([A, B], [A, ["b.tar", 20, "c" * 64]]) == [
        "b.tar has other bytes (sha256 bbbbbbbbbbbb… before, cccccccccccc… now)"
    ]
    assert changes([A, B], [B, C]) == ["a.tar is missing", "c.tar was added"]
    assert changes([A, B], [B, A]) == ["the shards are the same in another order"]
    assert changes([[*A, "d"]], [[*A, "e"]]) == [
        "a.tar has other samples, keys or labels in its index, though its bytes are the same"
    ]
    assert changes([A, B], [[*A, "d"], C]) == ["b.tar is missing", "c.tar was added"]  # before: an earlier version's
    assert changes([A, A], [A]) == ["a.tar is missing"]  # the same name in two folders


def test_weights_and_shards_of_several_sources_are_compared() -> None:
    before, now = ({"sources": [{"weight": w, "shards": s} for w, s in both]} for both in SOURCES)
    assert differences(json.dumps(before), json.dumps(now)) == [
        "c.tar of source 1 is missing",
        "the weights of the sources were 1, 1 and are 1, 3",
    ]


SOURCES = ([("1", [A]), ("1", [B, C])], [("1", [A]), ("3", [B])])


def test_a_saved_listing_is_verified_by_its_fingerprint(tmp_path: Path) -> None:
    write_shards(tmp_path / "two", [2, 3])
    write_index(tmp_path / "two")
    both, one = load(str(tmp_path / "two")), load(str(tmp_path / "two" / "shard-000.tar"))
    gone = f"its fingerprint was {both.fingerprint} and is {one.fingerprint} ("
    assert describe_changes(both.fingerprint, one, tmp_path).startswith(gone)
    save_listing(both, tmp_path)
    assert describe_changes(both.fingerprint, one, tmp_path) == "shard-001.tar is missing"
    (kept,) = tmp_path.glob("shards-*.json")
    kept.write_text(kept.read_text().replace("shard-001", "shard-002"))
    assert describe_changes(both.fingerprint, one, tmp_path).startswith(gone)


def test_the_first_of_many_changes_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [1] * 9)
    write_index(tmp_path)
    every, one = load(str(tmp_path)), load(str(tmp_path / "shard-000.tar"))
    save_listing(every, tmp_path)
    named = "; ".join(f"shard-00{i}.tar is missing" for i in (1, 2, 3, 4))
    assert describe_changes(every.fingerprint, one, tmp_path) == f"{named} and 4 more changes"
