"""One training run, from what has to be in order before its first step to its last checkpoint."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffpipe.config import dump_yaml
from diffpipe.data.index import shard_set
from diffpipe.data.index.dataset_diff import save_listing
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.stream import batches
from diffpipe.evaluation.image_grid import grid
from diffpipe.evaluation.image_sources import GeneratedImages, ShardImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.reconstruction import in_words, reconstruction, unseen
from diffpipe.evaluation.scores import score, table
from diffpipe.evaluation.validation import Validation
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.latent_statistics import measure_latents
from diffpipe.experiment.preflight import fit_together, short_of_room
from diffpipe.experiment.resume_compat import accept, accept_data
from diffpipe.experiment.run import build_stage
from diffpipe.experiment.start import start_function
from diffpipe.experiment.stored_config import stored_config
from diffpipe.files import atomic_write
from diffpipe.interfaces import Generates, ImageShape, Reconstructs, Stage
from diffpipe.metrics import protocol
from diffpipe.rng import KeyedRNG
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.retention import recover
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.hooks import Hook
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.loop import Trainer
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus


@dataclass(frozen=True)
class Job:
    """One run: what it trains on, what it trains, and what it does along the way."""

    experiment: Experiment
    runtime: Runtime
    shards: ShardSet
    shape: ImageShape
    stage: Stage
    trainer: Trainer
    found: Checkpoint | None
    runs: Mapping[str, Checkpoint]
    validation: Validation | None

    @classmethod
    def prepare(cls, experiment: Experiment, runtime: Runtime, shards: ShardSet, shape: ImageShape) -> Job:
        """All else that can be refused before a step is trained, on all ranks together."""
        found, complaints = recover(experiment.run.checkpoints, runtime.comm)
        for complaint in complaints:
            print_on_rank_zero(runtime, f"warning: passing over a damaged checkpoint: {complaint}")
        experiment, stage, runs = build_stage(experiment, shape, runtime, training=True, trained=found)
        runtime.comm.raise_on_all_ranks(lambda: fit_together(experiment, stage, shards))
        validation = runtime.comm.raise_on_all_ranks(lambda: Validation.of(experiment, stage))
        trainer = Trainer(
            stage,
            runtime,
            experiment.train,
            experiment.optimizer,
            experiment.ema,
            seed=experiment.seed,
            batch_size=experiment.data.batch_size,
            max_bad_samples=experiment.data.max_bad_samples,
            start=start_function(stage, experiment, shards, runtime) if found is None else None,
        )
        return cls(experiment, runtime, shards, shape, stage, trainer, found, runs, validation)

    def run(self, stop_consensus: StopConsensus) -> signal.Signals | None:
        """Train to the last step, or until a signal asks to stop: that signal."""
        experiment, runtime, trainer = self.experiment, self.runtime, self.trainer
        self.resume()
        if trainer.step >= experiment.train.steps:
            print_on_rank_zero(
                runtime, f"{experiment.run.dir}: trained to step {trainer.step} already; raise train.steps to go on"
            )
            return None
        if codec := self.runs.get("codec"):
            print_on_rank_zero(runtime, f"codec {codec.path}: {in_words(codec.state.reconstruction)}")
        if runtime.main:
            atomic_write(experiment.run.path / "config.yaml", dump_yaml(experiment))
            save_listing(self.shards, experiment.run.path)
            experiment.run.interrupted.unlink(missing_ok=True)
        runtime.start_tracking({"config": dump_yaml(experiment)})
        stream = batches(
            experiment.data,
            self.shards,
            experiment.seed,
            start=trainer.position,
            rank=runtime.rank,
            world=runtime.world,
            accumulate=experiment.train.accumulate,
            pin_memory=runtime.device.type == "cuda",
        )
        if (short := short_of_room(experiment, self.shards, runtime.world)) is not None:
            print_on_rank_zero(runtime, f"warning: {short}")
        checkpointer = AsyncCheckpointer(experiment.run.checkpoints, experiment.checkpoint, runtime.comm.new_group())
        hooks = [
            Hook(experiment.checkpoint.every, lambda: self.save(checkpointer), last=True),
            Hook(experiment.validation.every, self.validate, last=self.validation is not None, measures=True),
            Hook(experiment.sample.every, self.draw),
            Hook(experiment.eval.every, self.score),
        ]
        asked: list[signal.Signals] = []

        def stop() -> bool:
            agreed = stop_consensus.poll(failed=checkpointer.failed)
            if agreed.failed:
                checkpointer.wait()  # raises
            asked.extend([agreed.signal] if agreed.signal else [])
            return bool(asked)

        with contextlib.closing(stream), checkpointer:
            trainer.run(stream, hooks, experiment.run.path, stop)
            if trainer.step < experiment.train.steps:
                self.save(checkpointer)
                checkpointer.wait()
                self._interrupted(asked[0])
                return asked[0]
        print_on_rank_zero(runtime, f"trained to step {trainer.step}: {self._newest}")
        return None

    def _interrupted(self, number: signal.Signals) -> None:
        run, step = self.experiment.run, self.trainer.step
        if self.runtime.main:
            atomic_write(run.interrupted, json.dumps({"signal": number.name, "step": step}) + "\n")
        print_on_rank_zero(
            self.runtime, f"stopped by {number.name} after step {step}: {self._newest}; the same command goes on"
        )

    @property
    def _newest(self) -> Path:
        return checkpoints.committed(self.experiment.run.checkpoints)[0]

    def resume(self) -> None:
        """Go on from the newest valid checkpoint, if the run has any. Raises UserError where it is of another run."""
        if self.found is not None:
            for change in accept(self.found, self.experiment, self.shape):
                print_on_rank_zero(self.runtime, f"{change}, as run.allow_changes says")
            changed = accept_data(self.found, self.experiment, self.shards, self.experiment.run.path)
            if changed is not None:
                print_on_rank_zero(self.runtime, f"the data has changed: {changed}; allowed by data.allow_changes")
            checkpoints.load(self.found, self.trainer.state(), self.runtime.comm)
            state, trainer = self.found.state, self.trainer
            trainer.step, trainer.position, trainer.skipped = state.step, state.position, state.skipped
            trainer.bad.known = state.bad_samples
            print_on_rank_zero(self.runtime, f"resuming from {self.found.path}")
            before, now = stored_config(self.found).data.batch_size, self.experiment.data.batch_size
            if before != now:
                print_on_rank_zero(
                    self.runtime, f"data.batch_size was {before} and is {now}, from position {trainer.position} on"
                )
            if self.validation is not None and state.validation not in (None, self.validation.about()):
                print_on_rank_zero(
                    self.runtime, "warning: validation losses before this are of other images: data.test has changed"
                )

    def save(self, checkpointer: AsyncCheckpointer) -> None:
        trainer, experiment = self.trainer, self.experiment
        state = RunState(
            step=trainer.step,
            position=trainer.position,
            skipped=trainer.skipped,
            bad_samples=trainer.bad.known,
            fingerprint=self.shards.fingerprint,
            shape=Shape(**self.shape._asdict()),
            experiment=experiment.model_dump(mode="json"),
            latents=measure_latents(
                self.stage,
                trainer.ema_networks,
                self.shards,
                self.shape,
                self.runtime,
                some_bad=experiment.data.max_bad_samples > 0,
            ),
            reconstruction=self._reconstruction(),
            validation=self.validation and self.validation.about(),
        )
        checkpointer.save(trainer.state(), state)

    def _reconstruction(self) -> dict[str, Any] | None:
        """After the last step, the score of reconstructed images, of held-out ones where there are any."""
        experiment, step = self.experiment, self.trainer.step
        if not experiment.eval.reconstruction or step < experiment.train.steps:
            return None
        about = {"step": step, "weights": "ema"}
        return reconstruction(experiment, self.stage, self.trainer.ema_networks(), self.runtime, about)

    def draw(self) -> None:
        """A picture of what the stage can do by now: its samples, else images above their reconstructions."""
        n = self.experiment.sample.n
        if isinstance(self.stage, Generates):
            images = torch.cat(map_over_ranks(n, self.generated(n).images, self.runtime))
        else:
            images = self._reconstructions(n)
        if self.runtime.main and images is not None:
            path = self.experiment.run.path / "samples" / f"step-{self.trainer.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            grid(images, self.shape.classes or None).save(path)

    def _reconstructions(self, n: int) -> Tensor | None:
        if not isinstance(self.stage, Reconstructs):
            return None
        columns = self.shape.classes or 8
        rows = max(1, n // (2 * columns))
        real = ShardImages(unseen(self.experiment), self.shape.channels, self.shape.resolution)
        images = real.images(range(rows * columns))
        rng = KeyedRNG(self.experiment.seed, torch.arange(len(images), device=self.runtime.device))
        with torch.no_grad(), self.runtime.autocast():
            again = self.stage.reconstruct(self.trainer.ema_networks(), images.to(self.runtime.device), rng).cpu()
        return rearrange([images, again], "two (rows columns) c h w -> (rows two columns) c h w", columns=columns)

    def validate(self) -> dict[str, float]:
        assert self.validation is not None
        values = self.validation.measure(self.trainer.ema_networks(), self.trainer.step - 1, self.runtime)
        loss = values["validation_loss"]
        print_on_rank_zero(
            self.runtime, f"step {self.trainer.step}: validation_loss {loss:.4f}, of the averaged weights"
        )
        return values

    def score(self) -> None:
        config, data, shape = self.experiment.eval, self.experiment.data, self.shape
        assert data.test is not None
        reference = ShardImages(shard_set.load(data.test, cache=data.shard_cache), shape.channels, shape.resolution)
        floor = ShardImages(self.shards, shape.channels, shape.resolution, n=config.n)
        result = score(self.generated(config.n), reference, floor, config.metrics, self.runtime)
        if self.runtime.main:
            protocol.write(result, self.experiment.run.path / "scores" / f"step-{self.trainer.step:08d}.json")
        print_on_rank_zero(self.runtime, f"step {self.trainer.step}\n{table(result)}")

    def generated(self, n: int) -> GeneratedImages:
        """The first n sample indices, from the averaged weights of this moment."""
        sampler = self.experiment.stage.sampler.model_dump(mode="json")
        about = {"step": self.trainer.step, "weights": "ema", "sampler": sampler}
        nets, seed = self.trainer.ema_networks(), self.experiment.seed
        return GeneratedImages(self.stage, nets, self.shape, self.runtime, n=n, seed=seed, about=about)
