"""What of the data a resume may change: how many samples make a step. And what it may not, unless that is meant."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from diffpipe.data import load
from diffpipe.data.order import Order
from tests.integration.commands import SHARDS, metrics, seen, train

QUICK = ("data.resolution=8", "data.workers=0", "checkpoint.async=false", "train.record_samples=true")


def test_another_batch_size_goes_on_at_the_position_where_the_old_one_ended(tmp_path: Path) -> None:
    said = train(tmp_path, *QUICK, "train.steps=3")
    assert "data.batch_size was" not in said
    said = train(tmp_path, *QUICK, "train.steps=5", "data.batch_size=13", "data.workers=1", processes=2)
    assert "data.batch_size was 8 and is 13, from position 24 on\n" in said
    train(tmp_path, *QUICK, "train.steps=7", "data.batch_size=5", "train.accumulate=3")

    ends = [0, 8, 16, 24, 37, 50, 55, 60]
    assert {step: line["images"] for step, line in metrics(tmp_path).items()} == dict(enumerate(ends[1:], 1))
    state = json.loads((tmp_path / "checkpoints/step-00000007/state.json").read_text())
    assert (state["step"], state["position"]) == (7, 60)
    # Step k has all the positions that it is to have, and at each of them the sample that the order puts there.
    samples = seen(tmp_path)
    assert [sorted(samples[step]) for step in range(7)] == [[*range(a, b)] for a, b in itertools.pairwise(ends)]
    shards = load(str(SHARDS / "train"))
    at = zip(*Order(0, shards.counts).at(np.arange(60)), strict=True)
    keys = [shards.sample(int(shard), int(i)).key for shard, i in at]
    assert [samples[step][position] for step in range(7) for position in sorted(samples[step])] == keys
