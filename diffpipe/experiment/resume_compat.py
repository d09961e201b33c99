"""What makes a run the one that it is, and what of it a resume may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffpipe.data.index.dataset_diff import what_changed
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import ImageShape
from diffpipe.train.checkpoint.read import Checkpoint

_FINGERPRINT = "data.fingerprint"


class Change(NamedTuple):
    """A key whose value is not the checkpoint's."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before} and is {self.now}"


def identity(experiment: Experiment, shards: ShardSet, shape: ImageShape) -> dict[str, Any]:
    """By section of the config: the seed, the order of the stream, the model, and how its weights move.

    Not the batch size: which sample stands at which position does not depend on it, and a resume may change it.
    """
    data = experiment.data
    order = {"fingerprint": shards.fingerprint, "lanes": data.lanes, "window": data.window}
    augmentation = {"flip": data.flip, "crop": data.crop}
    # A codec, or a teacher, is its checkpoint's hash, wherever it lies.
    places = {"codec": {"run"}, "teacher": {"run"}}
    stage = experiment.stage.model_dump(mode="json", exclude={"sampler": True, **places})
    return {
        "seed": experiment.seed,
        "data": order | augmentation | shape._asdict(),
        "stage": stage,
        "optimizer": experiment.optimizer.model_dump(mode="json"),
        "ema": experiment.ema.model_dump(mode="json"),
    }


def accept(found: Checkpoint, now: dict[str, Any], adopt: Sequence[str]) -> list[Change]:
    """What has changed since the checkpoint was saved and is meant to: `adopt` names it, or the section it is in.

    Raises UserError where something else has changed, or the model, which its weights would not fit. Whether the shards
    have is for `accept_data` to say.
    """
    was, is_ = _flatten(found.state["identity"]), _flatten(now)
    changed = [Change(key, was.get(key), is_.get(key)) for key in sorted(was.keys() | is_.keys())]
    changed = [change for change in changed if change.before != change.now and change.key != _FINGERPRINT]
    model = [change for change in changed if _of_model(change.key)]
    if model:
        what = ", ".join(map(str, model))
        raise UserError(f"{found.path} is of another model: {what}; restore the config, or give another run.dir")
    unmeant = [change for change in changed if not any(f"{change.key}.".startswith(f"{key}.") for key in adopt)]
    if unmeant:
        what, keys = ", ".join(map(str, unmeant)), ",".join([*adopt, *(change.key for change in unmeant)])
        raise UserError(
            f"{found.path} is of another experiment: {what}; restore the config, say that it is meant by "
            f"run.adopt=[{keys}], or give another run.dir"
        )
    return changed


def accept_data(found: Checkpoint, experiment: Experiment, shards: ShardSet, listings: Path) -> str | None:
    """Which shards are not those of the checkpoint, if any; `listings` is where those were written down.

    Raises UserError where that is so and data.on_change does not adopt it.
    """
    before = _flatten(found.state["identity"])[_FINGERPRINT]
    if before == shards.fingerprint:
        return None
    changed = what_changed(before, shards, listings)
    if experiment.data.on_change == "refuse":
        raise UserError(
            f"{found.path} was trained on other data: {changed}; restore it, say that it is meant by "
            f"data.on_change=adopt, or give another run.dir"
        )
    return changed


def _of_model(key: str) -> bool:
    return key.startswith("stage.") or key in {f"data.{name}" for name in ImageShape._fields}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
