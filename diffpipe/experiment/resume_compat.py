"""What makes a run the one that it is, and what of it a resume may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffpipe.data.index.dataset_diff import describe_changes
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.stored_config import stored_config
from diffpipe.interfaces import ImageShape
from diffpipe.train.checkpoint.read import Checkpoint


class Change(NamedTuple):
    """A key whose value is not the checkpoint's."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before} and is {self.now}"


def identity(experiment: Experiment, shape: ImageShape) -> dict[str, Any]:
    """The keys of the config that make a run the one it is: the seed, the stream's order, the model, the optimizer.

    Not the batch size: which sample stands at which position does not depend on it, and a resume may change it.
    """
    data = experiment.data
    order = {"interleave": data.interleave, "shuffle_window": data.shuffle_window}
    augmentation = {"flip": data.flip, "crop": data.crop}
    stage = experiment.stage.model_dump(mode="json", exclude={"sampler": True})
    for dependency in experiment.stage.dependencies():
        if dependency.kind == "run":  # it is its checkpoint's hash, wherever that lies
            del stage[dependency.section.removeprefix("stage.")]["run"]
    return {
        "seed": experiment.seed,
        "data": order | augmentation | shape._asdict(),
        "stage": stage,
        "optimizer": experiment.optimizer.model_dump(mode="json"),
        "ema": experiment.ema.model_dump(mode="json"),
    }


def accept(found: Checkpoint, experiment: Experiment, shape: ImageShape) -> list[Change]:
    """The keys that have changed since the checkpoint was saved, all of them allowed by `run.allow_changes`.

    That names keys, or whole sections. Raises UserError where another key has changed, or the model, which the weights
    would not fit. `accept_data` compares the shards.
    """
    allowed = experiment.run.allow_changes
    before = identity(stored_config(found), ImageShape(**found.state.shape.model_dump()))
    was, is_ = _flatten(before), _flatten(identity(experiment, shape))
    changed = [Change(key, was.get(key), is_.get(key)) for key in sorted(was.keys() | is_.keys())]
    changed = [change for change in changed if change.before != change.now]
    model = [change for change in changed if _of_model(change.key)]
    if model:
        what = ", ".join(map(str, model))
        raise UserError(f"{found.path} is of another model: {what}; restore the config, or give another run.dir")
    unmeant = [change for change in changed if not any(f"{change.key}.".startswith(f"{key}.") for key in allowed)]
    if unmeant:
        what, keys = ", ".join(map(str, unmeant)), ",".join([*allowed, *(change.key for change in unmeant)])
        raise UserError(
            f"{found.path} is of another experiment: {what}; restore the config, say that it is meant by "
            f"run.allow_changes=[{keys}], or give another run.dir"
        )
    return changed


def accept_data(found: Checkpoint, experiment: Experiment, shards: ShardSet, listings: Path) -> str | None:
    """Which shards are not those of the checkpoint, if any; `listings` is where those were written down.

    Raises UserError where that is so and data.allow_changes is false.
    """
    before = found.state.fingerprint
    if before == shards.fingerprint:
        return None
    changed = describe_changes(before, shards, listings)
    if not experiment.data.allow_changes:
        raise UserError(
            f"{found.path} was trained on other data: {changed}; restore it, say that it is meant by "
            f"data.allow_changes=true, or give another run.dir"
        )
    return changed


def _of_model(key: str) -> bool:
    return key.startswith("stage.") or key in {f"data.{name}" for name in ImageShape._fields}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
