"""One training run, from the checks before its first step to its last checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffpipe.config import dump_yaml
from diffpipe.config.differences import flatten
from diffpipe.data.index.dataset_diff import save_listing
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.stream import batches
from diffpipe.errors import UserError
from diffpipe.evaluation.reconstruction import in_words, reconstruction
from diffpipe.evaluation.validation import Validation
from diffpipe.experiment import snapshots
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.monitor import Monitor
from diffpipe.experiment.preflight import cache_warning, enlarged_images, require_writable
from diffpipe.experiment.preparation import build_trainer, load_progress, prepare_stage, trained_already
from diffpipe.experiment.resources import JobSize, resource_warnings
from diffpipe.experiment.resume_compat import allowed_changes, allowed_data_change
from diffpipe.experiment.start_summary import start_summary
from diffpipe.experiment.stored_config import stored_config
from diffpipe.files import atomic_write
from diffpipe.interfaces import Batch, ImageShape, Stage
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.callbacks import Callback
from diffpipe.train.checkpoint.asynchronous import SAVE_TIMEOUT, AsyncCheckpointer
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.hooks import Hook
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.loop import Trainer
from diffpipe.train.run_events import recorded_events
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus
from diffpipe.train.tracker_kinds import TrackedRun


@dataclass(frozen=True)
class Job:
    """One run: its data, its stage and its trainer.

    checkpoint: the newest valid one, that it resumes from. runs: the checkpoints of other runs that the stage needs, by
    their role.
    """

    experiment: Experiment
    runtime: Runtime
    shards: ShardSet
    shape: ImageShape
    stage: Stage
    trainer: Trainer
    checkpoint: Checkpoint | None
    runs: Mapping[str, Checkpoint]
    validation: Validation | None
    callbacks: Sequence[Callback] = ()

    @classmethod
    def prepare(
        cls,
        experiment: Experiment,
        runtime: Runtime,
        shards: ShardSet,
        shape: ImageShape,
        callbacks: Sequence[Callback] = (),
    ) -> Job:
        """Build the stage and its trainer, and make the checks that remain. A collective. Raises UserError."""
        checkpoint, complaints = recover(experiment.run.checkpoints, runtime.comm)
        for complaint in complaints:
            print_on_rank_zero(runtime, f"warning: skipping a damaged checkpoint: {complaint}")
        if (renamed := runtime.comm.on_rank_zero(lambda: snapshots.recover(experiment, checkpoint))) is not None:
            print_on_rank_zero(runtime, f"warning: {renamed}")
        prepared = prepare_stage(experiment, shards, shape, checkpoint, runtime)
        runtime.comm.raise_on_all_ranks(lambda: require_writable(experiment.run.checkpoints))
        trainer = build_trainer(prepared, shards, checkpoint, runtime)
        lacks = runtime.comm.raise_on_all_ranks(lambda: resource_warnings(prepared.experiment, trainer, shards, shape))
        for sentence in lacks:
            print_on_rank_zero(runtime, f"warning: {sentence}")
        for sentence in prepared.initial.sentences() if prepared.initial else []:
            print_on_rank_zero(runtime, sentence)
        experiment, stage, runs, validation = prepared.experiment, prepared.stage, prepared.runs, prepared.validation
        return cls(experiment, runtime, shards, shape, stage, trainer, checkpoint, runs, validation, callbacks)

    def run(self, stop_consensus: StopConsensus) -> signal.Signals | None:
        """Train to the last step, or save and return the signal that asked to stop."""
        experiment, runtime, trainer = self.experiment, self.runtime, self.trainer
        self.resume()
        if (nothing_left := trained_already(experiment, trainer)) is not None:
            print_on_rank_zero(runtime, nothing_left)
            return None
        if codec := self.runs.get("codec"):
            print_on_rank_zero(runtime, f"codec {codec.path}: {in_words(codec.state.reconstruction)}")
        self._write_config()
        total = self.shards.total
        parallel = trainer.strategy.name
        print_on_rank_zero(
            runtime, start_summary(experiment, runtime, trainer.nets, total, self.shape, trainer.step, parallel)
        )
        stream = self._stream()
        self._remark_on_data()
        checkpointer = AsyncCheckpointer(
            experiment.run.checkpoints,
            experiment.checkpoint,
            runtime.comm.new_group(SAVE_TIMEOUT),
            lambda message: print_on_rank_zero(runtime, f"warning: {message}"),
            stop_consensus.comm,
        )
        monitor = Monitor(
            experiment, runtime, self.shards, self.shape, self.stage, trainer, self.validation, self.callbacks
        )
        hooks = [
            Hook(experiment.checkpoint.every, lambda: self.save(checkpointer), last=True),
            Hook(snapshots.every(experiment), lambda: self.save_snapshot(checkpointer)),
            Hook(experiment.validation.every, monitor.validate, last=self.validation is not None, measures=True),
            Hook(experiment.sample.every, monitor.draw),
            Hook(experiment.eval.every, monitor.score),
        ]
        stopped_by: signal.Signals | None = None

        def stop() -> bool:
            nonlocal stopped_by
            agreed = stop_consensus.poll(failed=checkpointer.failed)
            if agreed.failed:
                checkpointer.wait()  # raises the error of the save
            stopped_by = stopped_by or agreed.signal
            return stopped_by is not None

        events = recorded_events(
            experiment.run.path, runtime, lambda: trainer.step, resumed=self.checkpoint is not None
        )
        with events as record_stop, contextlib.closing(stream), checkpointer:
            trainer.run(stream, hooks, experiment.run.path, stop, self._on_log)
            if trainer.step < trainer.last_step:
                assert stopped_by is not None
                self.save(checkpointer)
                checkpointer.wait()
                self._report_stop(stopped_by)
                record_stop(stopped_by)
                return stopped_by
        print_on_rank_zero(runtime, f"trained to step {trainer.step}: {self._last_saved}")
        return None

    def _on_log(self, values: Mapping[str, Any], step: int) -> None:
        for callback in self.callbacks:
            callback.on_log(values, step)

    def _write_config(self) -> None:
        """The run directory says what is trained: config.yaml, the listing of the shards, the trackers."""
        config, run = dump_yaml(self.experiment), self.experiment.run

        def write() -> None:
            try:
                atomic_write(run.path / "config.yaml", config)
                save_listing(self.shards, run.path)
                run.interrupted.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"{error.filename}: {error.strerror}; free some space, change the rights, or give another run.dir"
                ) from error

        self.runtime.comm.on_rank_zero(write)
        tracked = TrackedRun(run.path, run.project, run.name or run.path.resolve().name, self.trainer.step)
        self.runtime.trackers.start(
            tracked,
            flatten(self.experiment.model_dump(mode="json")),
            lambda message: print_on_rank_zero(self.runtime, f"warning: {message}"),
        )

    def _remark_on_data(self) -> None:
        if (warning := cache_warning(self.experiment, self.shards, JobSize.launched(self.runtime.world))) is not None:
            print_on_rank_zero(self.runtime, f"warning: {warning}")
        first = self.runtime.main and self.checkpoint is None  # the remark comes once in a run
        if first and (remark := enlarged_images(self.experiment, self.shards)) is not None:
            print_on_rank_zero(self.runtime, f"note: {remark}")

    def _stream(self) -> Generator[Batch, None, None]:
        experiment, runtime = self.experiment, self.runtime
        return batches(
            experiment.data,
            self.shards,
            experiment.seed,
            start=self.trainer.position,
            rank=runtime.rank,
            world=runtime.world,
            accumulate=experiment.train.accumulate,
            pin_memory=runtime.device.type == "cuda",
        )

    def _report_stop(self, stopped_by: signal.Signals) -> None:
        run, step = self.experiment.run, self.trainer.step
        if self.runtime.main:
            try:
                atomic_write(run.interrupted, json.dumps({"signal": stopped_by.name, "step": step}) + "\n")
            except OSError as error:
                print_on_rank_zero(self.runtime, f"warning: {run.interrupted}: {error.strerror}: it is not written")
        print_on_rank_zero(
            self.runtime,
            f"stopped by {stopped_by.name} after step {step}: {self._last_saved}; the same command resumes it",
        )

    @property
    def _last_saved(self) -> Path:
        # By its name: on a network file system, a rank may not see yet what rank 0 has committed.
        return self.experiment.run.checkpoints / checkpoints.step_name(self.trainer.step)

    def resume(self) -> None:
        """Load the newest valid checkpoint, if the run has any. Raises UserError where it is of another run."""
        if self.checkpoint is None:
            return
        say = functools.partial(print_on_rank_zero, self.runtime)
        for change in allowed_changes(self.checkpoint, self.experiment, self.shape):
            say(f"{change}, as run.allow_changes says")
        changed = allowed_data_change(self.checkpoint, self.experiment, self.shards, self.experiment.run.path)
        if changed is not None:
            say(f"the data has changed: {changed}; allowed by data.allow_changes")
        state, trainer = self.checkpoint.state, self.trainer
        if state.imported_from is not None:
            say(f"training the weights of {state.imported_from} further, with a fresh optimizer")
        load_progress(trainer, self.checkpoint)
        say(f"resuming from {self.checkpoint.path}")
        before, now = stored_config(self.checkpoint).data.batch_size, self.experiment.data.batch_size
        if before != now:
            say(f"data.batch_size was {before} and is {now}, from position {trainer.position} on")
        if self.validation is not None and state.validation and not self.validation.is_on(state.validation):
            say("warning: earlier validation losses are of other images: data.test has changed")

    def save(self, checkpointer: AsyncCheckpointer) -> None:
        """Save a checkpoint. A snapshot that is due is committed before it: no resume begins after a missing one."""
        due = snapshots.due(self.experiment, self.trainer.step)
        checkpointer.save(self.trainer.state(), self._state(self._reconstruction()), [*due, checkpointer.checkpoints])

    def save_snapshot(self, checkpointer: AsyncCheckpointer) -> None:
        """Save a snapshot of the averages, unless it was saved with the step's checkpoint."""
        checkpointer.save(self.trainer.state(), self._state(), snapshots.due(self.experiment, self.trainer.step))

    def _state(self, reconstruction: dict[str, Any] | None = None) -> RunState:
        trainer, experiment = self.trainer, self.experiment
        return RunState(
            step=trainer.step,
            position=trainer.position,
            skipped=trainer.skipped,
            bad_samples=trainer.bad.known,
            fingerprint=self.shards.fingerprint,
            shape=Shape(**self.shape._asdict()),
            experiment=experiment.model_dump(mode="json"),
            reconstruction=reconstruction,
            validation=self.validation and self.validation.about(),
            time=trainer.budget.state(trainer.step),
        )

    def _reconstruction(self) -> dict[str, Any] | None:
        """After the last step: the score of reconstructed images, held-out ones where there are any."""
        experiment, step = self.experiment, self.trainer.step
        if not experiment.eval.reconstruction or step < self.trainer.last_step:
            return None
        about = {"step": step, "weights": experiment.ema.weights}
        return reconstruction(experiment, self.stage, self.trainer.ema_networks(), self.runtime, about)
