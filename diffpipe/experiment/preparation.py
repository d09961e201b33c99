"""A run as it starts: its stage with all that it depends on, its trainer, and the progress of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import all_of
from diffpipe.evaluation.validation import Validation
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.initial_weights import InitialWeights, WeightsSource, initial_weights, weights_source
from diffpipe.experiment.preflight import require_fit, with_class_names
from diffpipe.experiment.resume_compat import with_order_version, with_stored_init
from diffpipe.experiment.run import build_stage
from diffpipe.experiment.start import start_function
from diffpipe.experiment.stored_config import with_stored_correction, with_stored_network
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.loop import Trainer
from diffpipe.train.lora import with_adapters
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values


class PreparedStage(NamedTuple):
    """The stage of a run, and the run's experiment with all that was left open in it.

    trained: the same with the adapters of `lora`. runs: the checkpoints of other runs that the stage needs, by their
    role. source, initial: the weights of `run.init`, for a new run.
    """

    experiment: Experiment
    stage: Stage
    trained: Stage
    runs: Mapping[str, Checkpoint]
    source: WeightsSource | None
    validation: Validation | None = None
    initial: InitialWeights | None = None


def prepare_stage(
    experiment: Experiment, shards: ShardSet, shape: ImageShape, checkpoint: Checkpoint | None, runtime: Runtime
) -> PreparedStage:
    """Build the stage, and check that it fits the shards. A collective that writes nothing. Raises UserError.

    checkpoint: the one that the run resumes from.
    """
    return fit_stage(open_stage(experiment, shards, shape, checkpoint, runtime), shards, runtime)


def open_stage(
    experiment: Experiment, shards: ShardSet, shape: ImageShape, checkpoint: Checkpoint | None, runtime: Runtime
) -> PreparedStage:
    """The stage with all that it is built of, unchecked. Arguments as for `prepare_stage`."""
    experiment = with_order_version(experiment, checkpoint)
    if checkpoint is not None:
        experiment = with_stored_network(experiment, checkpoint)
        experiment = with_stored_correction(experiment, checkpoint)
        experiment = with_stored_init(experiment, checkpoint)
    (experiment, stage, runs), source = all_of(
        lambda: build_stage(experiment, shape, runtime, training=True, trained=checkpoint),
        lambda: weights_source(experiment, shape, runtime) if checkpoint is None else None,
    )
    trained = _with_adapters(experiment, stage)
    return PreparedStage(with_class_names(experiment, shards), stage, trained, runs, source)


def fit_stage(opened: PreparedStage, shards: ShardSet, runtime: Runtime) -> PreparedStage:
    """The stage with its held-out images and initial weights. Raises UserError where they or the shards do not fit."""
    experiment, stage, source = opened.experiment, opened.stage, opened.source
    _, validation, initial = all_of(
        lambda: runtime.comm.raise_on_all_ranks(lambda: require_fit(experiment, stage, shards)),
        lambda: runtime.comm.raise_on_all_ranks(lambda: Validation.of(experiment, stage)),
        lambda: source and initial_weights(source, experiment, stage, runtime),
    )
    if initial is not None:
        init = experiment.init.model_copy(update={"sha256": initial.sha256})
        experiment = experiment.model_copy(update={"init": init})
    return opened._replace(experiment=experiment, validation=validation, initial=initial)


def _with_adapters(experiment: Experiment, stage: Stage) -> Stage:
    """The stage with the adapters of `lora`, or as it is. Raises UserError where it cannot have them."""
    if experiment.lora is None:
        return stage
    trained = with_adapters(stage, experiment.lora, experiment.init.fresh)
    without_values(trained)  # what cannot have adapters is refused here
    return trained


def build_trainer(
    prepared: PreparedStage, shards: ShardSet, checkpoint: Checkpoint | None, runtime: Runtime
) -> Trainer:
    """The stage's trainer at step 0. A collective. Raises UserError. checkpoint: the one that the run resumes from."""
    experiment, stage, start = prepared.experiment, prepared.stage, None
    if checkpoint is None:
        start = start_function(stage, experiment, shards, runtime)
        if prepared.initial is not None:
            start = prepared.initial.start_function(start)
    return Trainer(
        prepared.trained,
        runtime,
        experiment.train,
        experiment.optimizer,
        experiment.ema,
        seed=experiment.seed,
        batch_size=experiment.data.batch_size,
        max_bad_samples=experiment.data.max_bad_samples,
        samples_per_epoch=shards.total,
        start=start,
    )


def load_progress(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Set a trainer to the checkpoint that its run resumes from. Imported weights have no state of an optimizer."""
    state, tensors = checkpoint.state, trainer.state()
    if state.imported_from is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    checkpoints.load(checkpoint, tensors, trainer.runtime.comm, updates=trainer.updates_per_step)
    trainer.loaded()
    trainer.step, trainer.position, trainer.skipped = state.step, state.position, state.skipped
    trainer.bad.known = state.bad_samples
    trainer.budget.restore(state.time, state.step)


def trained_already(experiment: Experiment, trainer: Trainer) -> str | None:
    """A sentence where the run has all of its steps, or None."""
    if trainer.step < trainer.last_step:
        return None
    limit = "train.steps" if trainer.step >= experiment.train.steps else "train.minutes"
    return f"{experiment.run.dir}: trained to step {trainer.step} already; raise {limit} to go on"
