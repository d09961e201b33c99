"""A resume may change the batch size. Changed shards are refused, unless data.allow_changes is set."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from diffpipe.data import load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.mixture import Mixture
from diffpipe.data.loader.order import Order
from diffpipe.train.checkpoint.format import describe
from tests.support.commands import CONFIG, SHARDS, TINY, metrics, refused, seen, train
from tests.support.tars import write_shards

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


def test_a_run_of_format_2_goes_on_in_its_own_order_and_a_new_run_takes_todays(tmp_path: Path) -> None:
    few_shards = (*QUICK, "data.shuffle_window=64")
    shards = load(str(SHARDS / "train"))
    train(tmp_path / "new", *few_shards, "train.steps=2")
    train(tmp_path / "old", *few_shards, "train.steps=2", "data.order_version=1")
    as_format_2(tmp_path / "old" / "checkpoints" / "step-00000002")
    train(tmp_path / "old", *few_shards, "train.steps=4")
    for version, run, n in ((2, "new", 16), (1, "old", 32)):
        at = zip(*Order(0, shards.counts, 64, 64, version).at(np.arange(n)), strict=True)
        samples = {position: key for step in seen(tmp_path / run).values() for position, key in step.items()}
        expected = [shards.sample(int(shard), int(i)).key for shard, i in at]
        assert [samples[position] for position in range(n)] == expected, version
    line = refused(
        "train", CONFIG, f"run.dir={tmp_path}/old", *TINY, *few_shards, "train.steps=6", "data.order_version=2"
    )
    assert "data.order_version was 1 and is 2; restore the config, allow the change by run.allow_changes=[data." in line


def as_format_2(path: Path) -> None:
    """Make the checkpoint one of the previous format, whose data had no version of the order."""
    state = json.loads((path / "state.json").read_text())
    del state["experiment"]["data"]["order_version"]
    (path / "state.json").write_text(json.dumps(state | {"format": 2}))
    manifest = json.loads((path / "manifest.json").read_text()) | {"format": 2}
    manifest["files"]["state.json"] = describe(path / "state.json").model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))


def change(folder: Path) -> None:
    """One shard gets other images, one goes and one comes; the second stays."""
    write_shards(folder / "other", [3, 4, 5, 6], size=(64, 64))
    (folder / "other" / "shard-000.tar").replace(folder / "shards" / "shard-000.tar")
    (folder / "shards" / "shard-002.tar").unlink()
    (folder / "other" / "shard-003.tar").replace(folder / "shards" / "shard-003.tar")
    (folder / "shards" / "index.safetensors").unlink()
    write_index(folder / "shards")


def test_other_shards_are_refused_by_name_until_they_are_adopted(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [3, 4, 5])
    write_index(tmp_path / "shards")
    words = [*QUICK, f"data.train={tmp_path}/shards", "data.test=null"]
    run = tmp_path / "run"
    train(run, *words, "train.steps=2")
    size = (tmp_path / "shards" / "shard-000.tar").stat().st_size
    change(tmp_path)

    config = ["train", CONFIG, f"run.dir={run}", *TINY, *words, "train.steps=4"]
    said = refused(*config)
    assert f"{run}/checkpoints/step-00000002 was trained on other data: " in said
    now = (tmp_path / "shards" / "shard-000.tar").stat().st_size
    changes = f"shard-000.tar had {size} bytes and has {now}; shard-002.tar is missing; shard-003.tar was added"
    assert f": {changes}; restore it" in said
    assert "data.allow_changes=true" in said
    assert changes in refused(*config, "run.allow_changes=[data.fingerprint]")  # there is one way to mean it
    assert f"the data has changed: {changes}; allowed by data.allow_changes" in train(
        run, *words, "train.steps=3", "data.allow_changes=true"
    )
    # From now on it is the run's.
    assert "has changed" not in train(run, *words, "train.steps=4")
    positions = [sorted(samples) for _, samples in sorted(seen(run).items())]
    assert positions == [[*range(8 * step, 8 * step + 8)] for step in range(4)]


def test_several_sources_are_trained_on_by_weight_and_their_weights_are_the_runs(tmp_path: Path) -> None:
    for name, first in (("a", 9), ("b", 30)):
        write_shards(tmp_path / name, [first, 4])
        write_index(tmp_path / name)
    (tmp_path / "b" / "shard-000.tar").rename(tmp_path / "b" / "other.tar")
    write_index(tmp_path / "b")
    of = "data.sources=[{{url: {0}/a, weight: {1}}}, {{url: {0}/b}}]"
    words = [*QUICK, "data.train=null", "data.test=null"]
    run = tmp_path / "run"
    train(run, *words, of.format(tmp_path, 3), "train.steps=20")
    train(run, *words, of.format(tmp_path, 3), "train.steps=33", "data.batch_size=32", processes=2)
    config = ["train", CONFIG, f"run.dir={run}", *TINY, *words, "train.steps=40"]
    assert "the weights of the sources were 3, 1 and are 2, 1;" in refused(*config, of.format(tmp_path, 2))

    mixture = Mixture(0, [np.array([9, 4]), np.array([30, 4])], [3, 1], 64, 16384)
    shards = load([str(tmp_path / "a"), str(tmp_path / "b")])
    end = 20 * 8 + 13 * 32
    at = zip(*mixture.at(np.arange(end)), strict=True)
    keys = [shards.sample(int(shard), int(i)).key for shard, i in at]
    assert [key for _, samples in sorted(seen(run).items()) for _, key in sorted(samples.items())] == keys
