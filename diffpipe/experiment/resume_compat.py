"""Changes of the config and of the data between a checkpoint and its resume: which are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffpipe.config.differences import flatten
from diffpipe.data.index.dataset_diff import describe_changes
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError, raise_first
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.stored_config import stored_config
from diffpipe.files import user_path
from diffpipe.interfaces import ImageShape
from diffpipe.train.checkpoint.read import Checkpoint

_OF_MOMENTS = ("optimizer.kind", "optimizer.muon_convolutions")
"""Keys that choose which moments the optimizer keeps for a parameter: those of a checkpoint fit no other value."""


class Change(NamedTuple):
    """A key whose value differs from the checkpoint's."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        why = ", by which the learning rate decays" if self.key in ("train.steps", "train.minutes") else ""
        return f"{self.key} was {self.before} and is {self.now}{why}"


def with_order_version(experiment: Experiment, checkpoint: Checkpoint | None) -> Experiment:
    """The experiment with the version of the order that it leaves open: the checkpoint's, or a new run's newest."""
    if experiment.data.order_version is not None:
        return experiment
    version = VERSION if checkpoint is None else stored_config(checkpoint).data.order_version
    data = experiment.data.model_copy(update={"order_version": version})
    return experiment.model_copy(update={"data": data})


def with_stored_init(experiment: Experiment, checkpoint: Checkpoint) -> Experiment:
    """The experiment to resume, with the record of the weights that its run started from.

    Raises UserError where it names others: a resume does not start again.
    """
    stored = stored_config(checkpoint)
    given, recorded = experiment.run.init, stored.run.init
    if given is not None:
        init, sha256 = experiment.init, stored.init.sha256
        same_place = recorded is not None and user_path(given) == user_path(recorded)
        same = init.sha256 == sha256 if init.sha256 else same_place
        if not same or init.model_copy(update={"sha256": sha256}) != stored.init:
            raise UserError(
                f"{checkpoint.path}: its run started {_described(stored)}, and the config is {_described(experiment)}; "
                f"leave run.init and init out to resume it, or give another run.dir to start again"
            )
    run = experiment.run.model_copy(update={"init": recorded})
    return experiment.model_copy(update={"run": run, "init": stored.init})


def _described(experiment: Experiment) -> str:
    """The weights that a run starts with, in words."""
    if experiment.run.init is None:
        return "without run.init"
    keys = experiment.init.model_dump(mode="json", exclude_defaults=True)
    words = [f"run.init={experiment.run.init}", *(f"init.{key}={value}" for key, value in keys.items())]
    return f"with {' '.join(words)}"


def fixed_config(experiment: Experiment, shape: ImageShape) -> dict[str, Any]:
    """The part of the config that a resume keeps: the seed, the order of the stream, the model, the optimizer.

    The batch size is not in it: the sample at a position does not depend on it, and a resume may change it.
    """
    data = experiment.data
    order = data.model_dump(include={"interleave", "shuffle_window", "order_version"})
    augmentation = {"flip": data.flip, "crop": data.crop}
    return {
        "seed": experiment.seed,
        "data": order | augmentation | shape._asdict(),
        "stage": _stage(experiment),
        "lora": experiment.lora and experiment.lora.model_dump(mode="json"),
        "optimizer": experiment.optimizer.model_dump(mode="json"),
        "ema": experiment.ema.model_dump(mode="json", exclude={"snapshot_every", "keep_snapshots"}),
    }


def _stage(experiment: Experiment) -> dict[str, Any]:
    """The stage without its sampler. Of a run that it depends on, the hash of its checkpoint counts, not its path."""
    stage = experiment.stage.model_dump(mode="json", exclude={"sampler": True})
    for dependency in experiment.stage.dependencies():
        if dependency.kind == "run" and dependency.needed != "generation":  # a guide belongs to the sampler
            del stage[dependency.section.removeprefix("stage.")]["run"]
    return stage


def changed_stage(before: Experiment, now: Experiment) -> list[Change]:
    """The keys of the stage, without its sampler and its rates of dropout, that have other values now."""
    was, is_ = (flatten({"stage": _stage(experiment)}) for experiment in (before, now))
    keys = [key for key in sorted(was.keys() | is_.keys()) if not key.endswith("dropout")]
    return [Change(key, was.get(key), is_.get(key)) for key in keys if was.get(key) != is_.get(key)]


def allowed_changes(checkpoint: Checkpoint, experiment: Experiment, shape: ImageShape) -> list[Change]:
    """The keys that have changed since the checkpoint, all of them allowed by `run.allow_changes`.

    `run.allow_changes` names keys, or whole sections. Raises UserError where another key has changed, and for any
    change of the model, which the weights would not fit. Of imported weights, which no step has trained here, only the
    model is compared. `allowed_data_change` compares the shards.
    """
    allowed = experiment.run.allow_changes
    before = fixed_config(stored_config(checkpoint), ImageShape(**dict(checkpoint.state.shape)))
    was, is_ = flatten(before), flatten(fixed_config(experiment, shape))
    changed = [Change(key, was.get(key), is_.get(key)) for key in sorted(was.keys() | is_.keys())]
    changed = [change for change in changed if change.before != change.now]
    changed += _changed_decay(checkpoint, stored_config(checkpoint), experiment)
    imported = checkpoint.state.imported_from is not None
    model = [c for c in changed if _of_model(c.key) or (c.key in _OF_MOMENTS and not imported)]
    others = [] if imported else [change for change in changed if change not in model]
    refused = [change for change in others if not any(f"{change.key}.".startswith(f"{key}.") for key in allowed)]
    errors = []
    if model:
        changes = ", ".join(map(str, model))
        errors.append(
            UserError(f"{checkpoint.path} is of another model: {changes}; restore the config, or give another run.dir")
        )
    if refused:
        changes, keys = ", ".join(map(str, refused)), ",".join([*allowed, *(change.key for change in refused)])
        errors.append(
            UserError(
                f"{checkpoint.path} is of another experiment: {changes}; restore the config, allow the change by "
                f"run.allow_changes=[{keys}], or give another run.dir"
            )
        )
    raise_first(errors)
    return others


def allowed_data_change(checkpoint: Checkpoint, experiment: Experiment, shards: ShardSet, listings: Path) -> str | None:
    """The shards that differ from those of the checkpoint, in words, or None. listings: the folder with its listing.

    Raises UserError for a difference where data.allow_changes is false.
    """
    before = checkpoint.state.fingerprint
    if checkpoint.state.imported_from is not None or shards.has_fingerprint(before):
        return None
    changed = describe_changes(before, shards, listings)
    if not experiment.data.allow_changes:
        raise UserError(
            f"{checkpoint.path} was trained on other data: {changed}; restore it, allow the change by "
            f"data.allow_changes=true, or give another run.dir"
        )
    return changed


def _changed_decay(checkpoint: Checkpoint, before: Experiment, now: Experiment) -> list[Change]:
    """Changes of train.steps and train.minutes, where the steps until now would have had other learning rates by them.

    That is so once the learning rate decays, after the warm-up. A run that has all its steps already is not trained.
    """
    step, steps = checkpoint.step, (before.train.steps, now.train.steps)
    if not 0 < step < now.train.steps:
        return []
    was, would_be = (before.optimizer.lr_at(step - 1, n) for n in steps)
    changes = [Change("train.steps", *steps)] if was != would_be else []
    minutes = (before.train.minutes, now.train.minutes)
    if minutes[0] != minutes[1] and before.optimizer.decay == "cosine" and step > before.optimizer.warmup:
        changes.append(Change("train.minutes", *minutes))
    return changes


def _of_model(key: str) -> bool:
    """Whether the stored tensors fit no other value of this key."""
    data = {f"data.{name}" for name in ImageShape._fields}
    return key.startswith(("stage.", "lora.")) or key in {"ema.kind", "ema.sigma_rel"} | data
