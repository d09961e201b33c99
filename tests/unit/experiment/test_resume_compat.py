"""Changes between a checkpoint and its resume: which are refused, and which `allow_changes` allows."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from diffpipe.data.index import shard_set
from diffpipe.data.index.dataset_diff import save_listing
from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.resume_compat import allowed_changes, allowed_data_change, with_order_version
from diffpipe.experiment.stored_config import with_stored_correction
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.state import Shape
from tests.support.run_states import run_state
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES

SHAPE = ImageShape(1, square(8), 10)


def checkpoint(*words: str, fingerprint: str = "0" * 64, experiment: Experiment | None = None) -> Checkpoint:
    tree = (experiment or CASES["ddpm"].experiment("run.dir=x", *words)).model_dump(mode="json")
    state = run_state(
        4, experiment=tree, shape=Shape(channels=1, resolution=square(8), classes=10), fingerprint=fingerprint
    )
    return Checkpoint(Path("x/checkpoints/step-00000004"), state, "0" * 64)


def of_format_2(newer: Checkpoint) -> Checkpoint:
    """The checkpoint as the previous version wrote it: without the keys that came since."""
    tree = deepcopy(newer.state.experiment)
    del tree["data"]["order_version"]
    tree["stage"].pop("penalty_correction", None)
    return replace(newer, state=newer.state.model_copy(update={"experiment": tree}), format=2)


def test_what_does_not_touch_the_samples_or_the_weights_may_change() -> None:
    words = ("data.batch_size=4", "train.steps=99", "data.workers=1", "stage.sampler.steps=2", "checkpoint.every=7")
    assert allowed_changes(checkpoint(), CASES["ddpm"].experiment("run.dir=elsewhere", *words), SHAPE) == []


@pytest.mark.parametrize(
    "word", ["optimizer.lr=0.5", "seed=9", "data.shuffle_window=64", "ema.decay=0.5", "data.flip=true"]
)
def test_other_changes_are_refused_unless_the_key_or_its_section_is_allowed(word: str) -> None:
    key, _, value = word.partition("=")
    was = checkpoint("data.flip=false")
    with pytest.raises(UserError, match=rf"of another experiment: {key} was .* and is .*allow_changes=\[{key}\]"):
        allowed_changes(was, CASES["ddpm"].experiment("data.flip=false", word), SHAPE)
    for allowed in {key, key.partition(".")[0]}:
        words = ("data.flip=false", word, f"run.allow_changes=[{allowed}]")
        (change,) = allowed_changes(was, CASES["ddpm"].experiment(*words), SHAPE)
        assert (change.key, str(change.now).lower()) == (key, value)
    prefix = CASES["ddpm"].experiment("data.flip=false", word, f"run.allow_changes=[{key[:-1]}]")
    with pytest.raises(UserError, match="of another experiment"):
        allowed_changes(was, prefix, SHAPE)


def test_a_run_goes_on_in_the_order_that_it_began_with() -> None:
    """Checkpoints of format 2 know no versions of the order: theirs is the first."""
    open_, stated = CASES["ddpm"].experiment("run.dir=x"), CASES["ddpm"].experiment("run.dir=x", "data.order_version=2")
    assert open_.data.order_version is None
    assert with_order_version(open_, None).data.order_version == VERSION
    assert with_order_version(open_, checkpoint("data.order_version=2")).data.order_version == 2
    before = of_format_2(checkpoint())
    resumed = with_order_version(open_, before)
    assert resumed.data.order_version == 1
    assert allowed_changes(before, resumed, SHAPE) == []
    assert with_order_version(stated, before) == stated
    with pytest.raises(UserError, match=r"data\.order_version was 1 and is 2.*allow_changes=\[data\.order_version\]"):
        allowed_changes(before, stated, SHAPE)


@pytest.mark.parametrize("kind", ["gan", "adversarial"])
def test_lazy_penalties_go_on_as_they_began(kind: str) -> None:
    """Checkpoints of format 2 were trained without a correction of the optimizer for lazy penalties."""
    lazy, strict = CASES[kind].experiment("run.dir=x"), CASES[kind].experiment("run.dir=x", "stage.penalty_every=1")
    for experiment, corrected in ((lazy, False), (strict, True)):
        newer = checkpoint(experiment=experiment)
        before = of_format_2(newer)
        resumed = with_order_version(with_stored_correction(experiment, before), before)
        assert resumed.stage.penalty_correction == corrected  # pyright: ignore[reportAttributeAccessIssue]
        assert allowed_changes(before, resumed, SHAPE) == []
        assert with_stored_correction(experiment, newer).stage == experiment.stage
    stated = CASES[kind].experiment("run.dir=x", "stage.penalty_correction=true")
    before = of_format_2(checkpoint(experiment=lazy))
    with pytest.raises(UserError, match=r"stage\.penalty_correction was False and is True"):
        allowed_changes(before, with_stored_correction(stated, before), SHAPE)


def test_train_minutes_may_not_change_once_the_learning_rate_decays_by_them() -> None:
    words = ("optimizer.decay=cosine", "optimizer.warmup=2", "train.steps=9", "train.minutes=1")
    longer = CASES["ddpm"].experiment(*words[:-1], "train.minutes=2")
    with pytest.raises(UserError, match=r"train\.minutes was 1.0 and is 2.0, by which the learning rate decays"):
        allowed_changes(checkpoint(*words), longer, SHAPE)
    constant = ("optimizer.decay=constant", "train.minutes=2")
    assert allowed_changes(checkpoint(constant[0]), CASES["ddpm"].experiment(*constant), SHAPE) == []


def test_train_steps_may_not_change_once_the_learning_rate_decays_by_it() -> None:
    cosine = ("optimizer.decay=cosine", "train.steps=6")
    longer = ("optimizer.decay=cosine", "train.steps=12")
    reason = r"train\.steps was 6 and is 12, by which the learning rate decays.*run\.allow_changes=\[train\.steps\]"
    with pytest.raises(UserError, match=reason):
        allowed_changes(
            checkpoint(*cosine, "optimizer.warmup=2"), CASES["ddpm"].experiment(*longer, "optimizer.warmup=2"), SHAPE
        )
    words = (*longer, "optimizer.warmup=2", "run.allow_changes=[train]")
    (change,) = allowed_changes(checkpoint(*cosine, "optimizer.warmup=2"), CASES["ddpm"].experiment(*words), SHAPE)
    assert (change.before, change.now) == (6, 12)
    for same in ("optimizer.warmup=3", "optimizer.warmup=100"):  # steps 0 to 3 had the learning rates of the warm-up
        assert allowed_changes(checkpoint(*cosine, same), CASES["ddpm"].experiment(*longer, same), SHAPE) == []
    shorter = CASES["ddpm"].experiment("optimizer.decay=cosine", "optimizer.warmup=2", "train.steps=4")
    assert allowed_changes(checkpoint(*cosine, "optimizer.warmup=2"), shorter, SHAPE) == []  # it has all its steps


def test_a_change_of_the_model_is_always_refused() -> None:
    wider = CASES["ddpm"].experiment("stage.network.channels=16", "run.allow_changes=[stage]")
    with pytest.raises(UserError, match=r"of another model: stage\.network\.channels was 8 and is 16"):
        allowed_changes(checkpoint(), wider, SHAPE)
    muon, key = ("optimizer.kind=muon", "optimizer.muon_convolutions=true"), "optimizer.muon_convolutions"
    linear = CASES["ddpm"].experiment(muon[0], "run.allow_changes=[optimizer]")
    with pytest.raises(UserError, match=rf"of another model: {key} was True and is False; restore the config"):
        allowed_changes(checkpoint(*muon), linear, SHAPE)
    same = CASES["ddpm"].experiment("run.allow_changes=[data]")
    with pytest.raises(UserError, match=r"of another model: data\.classes was 10 and is 11"):
        allowed_changes(checkpoint(), same, ImageShape(1, square(8), 11))


def test_a_changed_data_set_is_described_and_needs_to_be_allowed(tmp_path: Path) -> None:
    before = shard_set.load(indexed_shards(tmp_path / "before", 4, 3))
    now = shard_set.load(indexed_shards(tmp_path / "now", 4, 5))
    save_listing(before, tmp_path)
    was = checkpoint(fingerprint=before.fingerprint)
    experiment = CASES["ddpm"].experiment("data.allow_changes=false")
    assert allowed_data_change(was, experiment, before, tmp_path) is None
    by_earlier_version = checkpoint(fingerprint=before.tars_fingerprint)
    assert allowed_data_change(by_earlier_version, experiment, before, tmp_path) is None
    with pytest.raises(UserError, match="was trained on other data"):
        allowed_data_change(by_earlier_version, experiment, now, tmp_path)
    with pytest.raises(UserError, match=r"was trained on other data: .*shard-001.*data\.allow_changes=true"):
        allowed_data_change(was, experiment, now, tmp_path)
    allowed = allowed_data_change(was, CASES["ddpm"].experiment("data.allow_changes=true"), now, tmp_path)
    assert allowed is not None
    assert "shard-001" in allowed
    assert "shard-000" not in allowed
