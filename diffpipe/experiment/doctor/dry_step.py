"""One step of the real loss, backward pass and optimizer, on a batch of the real data. Nothing of it is kept."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.order import rank_positions
from diffpipe.data.loader.stream import batches
from diffpipe.errors import UserError, as_user_error, raise_first
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.experiment.preparation import PreparedStage, build_trainer, load_progress, trained_already
from diffpipe.experiment.resources import blank_samples
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.machine import gigabytes
from diffpipe.plural import plural
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime


class DryStep(NamedTuple):
    """A step that was tried: in words how it went, and findings."""

    words: str
    findings: Sequence[Finding] = ()


def dry_step(
    prepared: PreparedStage, shards: ShardSet, shape: ImageShape, checkpoint: Checkpoint | None, runtime: Runtime
) -> DryStep:
    """Take the next step of the run, and another one where a later phase begins. A collective.

    Remote shards are not fetched for it: it is then of black images. Raises UserError as training would, and for any
    other error of the stage, such as that of a plug-in's network.
    """
    try:
        return _dry_step(prepared, shards, shape, checkpoint, runtime)
    except Exception as error:
        if as_user_error(error) is not None:
            raise
        words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise UserError(f"a step fails with {words}; `diffpipe train --debug` shows where") from error


def _dry_step(
    prepared: PreparedStage, shards: ShardSet, shape: ImageShape, checkpoint: Checkpoint | None, runtime: Runtime
) -> DryStep:
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    trainer = build_trainer(prepared, shards, checkpoint, runtime)
    if checkpoint is not None:
        load_progress(trainer, checkpoint)
    if (sentence := trained_already(prepared.experiment, trainer)) is not None:
        return DryStep("not tried, as none is left", [Finding("note", sentence)])
    remote = any(shard.remote is not None for shard in shards.shards)
    started = time.perf_counter()
    if remote:
        read = _blank(prepared.experiment, shape, trainer)
    else:
        read = runtime.comm.raise_on_all_ranks(lambda: _read(prepared.experiment, shards, trainer))
    reading = time.perf_counter() - started
    trainer.bad.add(trainer.step, read)
    first = sorted({max(trainer.step, phase.start) for phase in prepared.stage.phases()})
    for step in [step for step in first if step < trainer.last_step]:
        trainer.step, started = step, time.perf_counter()
        trainer.train_step(read)
    loss = trainer.log_values()["loss"]  # waits for the device
    seconds = time.perf_counter() - started
    peak = ""
    if runtime.device.type == "cuda":
        peak = f", at most {gigabytes(torch.cuda.max_memory_allocated(runtime.device))} of the GPU's memory"
    images = plural(sum(len(batch.images) for batch in read), "image")
    source = "black images, as the shards are remote" if remote else f"{images}, read in {reading:.1f} s"
    return DryStep(f"{seconds:.1f} s on {source}, loss {loss:.4f}{peak}")


def _read(experiment: Experiment, shards: ShardSet, trainer: Trainer) -> list[Batch]:
    """The rank's samples of a step. Raises UserError, for all samples together that cannot be read."""
    runtime, accumulate, limit = trainer.runtime, experiment.train.accumulate, experiment.data.max_bad_samples
    stream = batches(
        experiment.data.model_copy(update={"max_bad_samples": limit or experiment.data.batch_size}),
        shards,
        experiment.seed,
        start=trainer.position,
        rank=runtime.rank,
        world=runtime.world,
        accumulate=accumulate,
        pin_memory=runtime.device.type == "cuda",
    )
    with contextlib.closing(stream):
        # Copies: the loader's buffers go with it.
        read = [batch._replace(images=batch.images.clone()) for batch in itertools.islice(stream, accumulate)]
    if limit:
        return read
    raise_first([UserError(complaint) for batch in read for complaint in batch.errors])
    return [batch._replace(valid=None) for batch in read]


def _blank(experiment: Experiment, shape: ImageShape, trainer: Trainer) -> list[Batch]:
    runtime, accumulate = trainer.runtime, experiment.train.accumulate
    positions = rank_positions(experiment.data.batch_size, trainer.position, runtime.rank, runtime.world, accumulate)
    spans = itertools.islice(positions, accumulate)
    return [blank_samples(shape)(len(span))._replace(positions=torch.tensor(span)) for span in spans]
