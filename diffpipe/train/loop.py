"""The training loop. For each step, for each phase that is due: micro-batches, one update. Then averages and hooks.

Between two log steps the host never waits for the device: losses, gradient norms and the finite checks stay there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffpipe.errors import RankError, UserError
from diffpipe.interfaces import Batch, Loss, Phase, Stage
from diffpipe.precision import float32_products
from diffpipe.rng import KeyedRNG, fold_in
from diffpipe.train.bad_samples import BadSamples, sample_weight
from diffpipe.train.batch_sums import BatchSums
from diffpipe.train.blocks import checkpoint_activations, compile_blocks, require_blocks, uncompiled
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig, ModelEMA, PowerEMAConfig, prefix
from diffpipe.train.hooks import Hook
from diffpipe.train.initialization import StartFunction, initial_networks, start_from_data
from diffpipe.train.logs import MetricsLog, SampleLog
from diffpipe.train.meter import Meter
from diffpipe.train.nonfinite import handle_nonfinite
from diffpipe.train.optimizer import OptimizerConfig, build_optimizers
from diffpipe.train.parallel import ParallelStrategy, trainable_parameters
from diffpipe.train.progress import TrainProgress
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import (
    empty_sharded_networks,
    fill,
    networks_of_rank_zero,
    unsharded_copies,
    without_values,
)
from diffpipe.train.time_budget import TimeBudget


class Trainer:
    """Trains a stage's networks on a stream of batches.

    step: the number of finished steps. position: the next sample's position in the stream, which is the number of
    samples seen. skipped: the updates that were left out because they were not finite. bad: the samples that could not
    be read.
    """

    def __init__(
        self,
        stage: Stage,
        runtime: Runtime,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        ema: EMAConfig | PowerEMAConfig,
        *,
        seed: int,
        batch_size: int,
        max_bad_samples: int = 0,
        samples_per_epoch: int | None = None,
        start: StartFunction | None = None,
    ):
        """batch_size: of the global batch. samples_per_epoch: to log the epoch. start: sets fresh networks from data;
        None for a run that resumes.

        A collective. Raises UserError where an option does not fit the stage's networks or the job's processes.
        """
        self.stage, self.runtime, self.config, self.seed, self.batch_size = stage, runtime, config, seed, batch_size
        self.strategy = ParallelStrategy.of(config.parallel, config.shard_size, runtime)
        if self.strategy.mesh is None:
            self.nets = initial_networks(stage, runtime, seed)
            if start is not None:
                start_from_data(self.nets, start, seed, runtime.comm)
            self.averages = {name: ModelEMA(ema, net) for name, net in self.nets.items()}
            self._prepare_blocks()
        else:
            self.nets = without_values(stage)
            self._prepare_blocks()
            fill(self.nets, networks_of_rank_zero(stage, runtime, seed, start), runtime)
            averaged = [empty_sharded_networks(stage, self.strategy) for _ in ema.decays]
            self.averages = {
                name: ModelEMA(ema, net, [nets[name] for nets in averaged]) for name, net in self.nets.items()
            }
        self.trainable = {name: trainable_parameters(net) for name, net in self.nets.items()}
        self.wrapped = {name: self.strategy.wrap(net.train()) for name, net in self.nets.items()}
        self.optimizer_config = optimizer
        scaled = runtime.dtype == torch.float16
        self.optimizers = build_optimizers(optimizer, stage.phases(), self.nets, scaled=scaled, comm=runtime.comm)
        self.step = self.position = self.skipped = 0
        self.samples_per_epoch = samples_per_epoch
        self.budget = TimeBudget(config.steps, config.minutes)
        self.bad = BadSamples(max_bad_samples, runtime.comm)
        self._meter = Meter()
        self._buckets_settled: set[str] = set()  # networks with a backward pass behind them: see `in_buckets`

    def _prepare_blocks(self) -> None:
        """Recompute, compile and shard the networks block by block, as the config asks for."""
        config, strategy = self.config, self.strategy
        require_blocks(self.nets, *config.block_options(None if strategy.mesh is None else strategy.name))
        # The gradient of a gradient is taken in float32.
        penalized = {name for phase in self.stage.phases() if phase.penalizes for name in phase.trains}
        for name, net in self.nets.items():
            if config.activation_checkpointing:
                checkpoint_activations(net)
            if config.compile:
                compile_blocks(net)
            self.strategy.shard(net, float32=name in penalized)

    @property
    def updates_per_step(self) -> int:
        """The most updates that one optimizer makes in a step: its phases."""
        return max(Counter(phase.trains for phase in self.stage.phases()).values())

    def state(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint, by name. Loading writes into these tensors."""
        tensors: dict[str, Tensor] = {}
        for name, net in self.nets.items():
            tensors |= {f"net.{name}.{key}": value for key, value in net.state_dict().items()}
            for i, average in enumerate(self.averages[name].nets):
                own = {key: t for key, t in average.state_dict().items() if key not in self.averages[name].frozen}
                tensors |= {f"{prefix(i)}.{name}.{key}": value for key, value in own.items()}
        names = {p: f"{name}.{key}" for name, net in self.nets.items() for key, p in net.named_parameters()}
        for trains, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{'+'.join(trains)}.{key}": t for key, t in optimizer.state(names).items()}
        return tensors

    def loaded(self) -> None:
        """Make the averages whole after a checkpoint has been loaded into `state`: they share frozen parameters."""
        for average in self.averages.values():
            average.copy_frozen()

    def ema_networks(self) -> dict[str, nn.Module]:
        """The averaged networks, unsharded, to generate and to score. A collective where they are sharded."""
        nets = {name: average.net for name, average in self.averages.items()}
        if self.strategy.mesh is None:
            return nets
        return unsharded_copies(self.stage, nets, self.runtime)

    @property
    def last_step(self) -> int:
        """The step that the run ends with, as it is known now: `train.steps`, or earlier by `train.minutes`."""
        return self.budget.last_step(self.step)

    def run(
        self,
        batches: Iterator[Batch],
        hooks: Sequence[Hook],
        run_dir: Path,
        stop: Callable[[], bool] = lambda: False,
        on_log: Callable[[Mapping[str, Any], int], None] | None = None,
    ) -> None:
        """Train from `self.step` to the last step.

        batches: this rank's micro-batches, from `self.position` on. stop: called by all ranks after each step; where it
        is true, on all ranks, the loop ends with that step, which is logged and calls no hook.
        on_log: called by rank 0 with the values of each log step, as trackers get them, and the step.

        Raises, on all ranks, NonFiniteError at the first log step after a non-finite update that may not be skipped,
        and BadSamplesError at the first one after too many bad samples. Raises RankError where this rank cannot read a
        sample and none may be bad.
        """
        with ExitStack() as stack:
            metrics_log = stack.enter_context(
                closing(MetricsLog(run_dir / "metrics.jsonl", self.runtime, self.step, on_log))
            )
            sample_log = None
            if self.config.record_samples:
                sample_log = stack.enter_context(closing(SampleLog(run_dir, self.runtime.rank)))
            progress = stack.enter_context(closing(TrainProgress(self.last_step, self.step, self.runtime)))
            stack.enter_context(self.budget.recorded(run_dir, self.runtime))
            self._meter.restart(self.step)
            stopping = False
            while self.step < self.last_step and not stopping:
                micro_batches = self._next_micro_batches(batches)
                self.bad.add(self.step, micro_batches)
                if sample_log is not None:
                    sample_log.write(self.step, micro_batches)
                self.train_step(micro_batches)
                progress.step_done()
                last = self.last_step
                stopping = stop() and self.step < last
                due = [] if stopping else [hook for hook in hooks if hook.due(self.step, last)]
                # Before hooks, too: what is saved or scored has been checked to be finite.
                if due or stopping or self.step % self.config.log_every == 0 or self.step == last:
                    values = self.log_values()
                    for hook in [hook for hook in due if hook.measures]:
                        values |= hook.run() or {}
                    metrics_log.write(values)
                    progress.log(values, self.last_step)
                for hook in [hook for hook in due if not hook.measures]:
                    hook.run()
                if due:
                    self._meter.skip_time()

    def _next_micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the next step. Raises RankError where this rank cannot read a sample."""
        start = time.perf_counter()
        try:
            micro_batches = [next(batches) for _ in range(self.config.accumulate)]
        except UserError as error:
            raise RankError(f"step {self.step}, rank {self.runtime.rank}: {error}") from error
        self._meter.add_wait(time.perf_counter() - start)
        return micro_batches

    def train_step(self, micro_batches: Sequence[Batch]) -> None:
        """One step on this rank's micro-batches: the update of every phase that is due, then the averages."""
        micro_batches = [self.runtime.to_device(batch) for batch in micro_batches]
        weight = sample_weight(micro_batches, self.batch_size, self.runtime.comm)
        for phase in self.stage.phases():
            if phase.due(self.step):
                self._update(phase, micro_batches, weight)
        for average in self.averages.values():
            average.update(self.step)
        self.step += 1
        self.position += self.batch_size

    def _update(self, phase: Phase, micro_batches: Sequence[Batch], weight: float | Tensor) -> None:
        """Accumulate the phase's gradient over the micro-batches, then step its optimizer."""
        optimizer = self.optimizers[phase.trains]
        # A network that the phase does not train passes gradients on to those that it trains. It runs without its
        # wrapper, which would wait for gradients that never come.
        nets = {name: self.wrapped[name] if name in phase.trains else self.nets[name] for name in self.nets}
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                parameter.requires_grad_(name in phase.trains)
        eager = uncompiled(apply=phase.penalizes and self.config.compile)
        with self.strategy.update([*self.wrapped.values()], penalizes=phase.penalizes), eager:
            if self.strategy.in_buckets and not self._buckets_settled.issuperset(phase.trains):
                self._forward_backward(phase, nets, micro_batches[0], weight, 0, last=True)
                optimizer.zero_grad()
                self._buckets_settled.update(phase.trains)
            sums = BatchSums(self.stage)
            for i, batch in enumerate(micro_batches):
                loss = self._forward_backward(phase, nets, batch, weight, i, last=i == len(micro_batches) - 1)
                self._meter.add_loss(self.step, self._prefix(phase), batch, loss)
                sums.add(loss)
        norm = optimizer.step(self.optimizer_config.lr_at(self.step, self.last_step))
        sums.track(phase, self.nets, norm, self.runtime.comm)
        self._meter.add_norm(self.step, self._prefix(phase), norm)

    def _forward_backward(
        self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, weight: float | Tensor, i: int, *, last: bool
    ) -> Loss:
        """Forward and backward on micro-batch i. After the last one the gradients are those of the global batch."""
        torch.manual_seed(fold_in(self.seed, "network", phase.name, self.step, self.runtime.rank, i))
        with nullcontext() if last else self.strategy.no_sync([*self.wrapped.values()]):
            with self.runtime.autocast(), float32_products(tf32=self.config.tf32):
                loss = self.stage.loss(phase, nets, batch, KeyedRNG(self.seed, batch.positions))
            losses = loss.per_sample if batch.valid is None else loss.per_sample.where(batch.valid, 0)
            with float32_products(tf32=self.config.tf32 and not (phase.penalizes or phase.exact)):
                self.optimizers[phase.trains].backward(losses.sum() * weight)
        return loss

    def _prefix(self, phase: Phase) -> str:
        """The prefix of the phase's logged values: empty where there is one phase."""
        return f"{phase.name}/" if len(self.stage.phases()) > 1 else ""

    def log_values(self) -> dict[str, Any]:
        """The means since the last log step over all ranks. Waits for the device. A collective."""
        updates = self._meter.nonfinite_updates(self.runtime)
        self.skipped = handle_nonfinite(updates, self.skipped, self.config, self.runtime.comm)
        self.bad.agree()
        means, seconds = self._meter.means(self.runtime)
        steps = self.step - self._meter.first
        values: dict[str, Any] = {"step": self.step, "images": self.position}
        if "loss" not in means:  # several phases: the step's loss is their sum
            values["loss"] = sum(value for key, value in means.items() if key.endswith("/loss"))
        values |= means
        values["lr"] = self.optimizer_config.lr_at(self.step - 1, self.budget.last_step(self.step - 1))
        self.budget.record(self._meter.first, self.step, seconds, self.runtime)
        if (time_so_far := self.budget.state(self.step)) is not None:
            values |= {"minutes": round(time_so_far.seconds / 60, 4), "last_step": self.last_step}
        if self.skipped:
            values["skipped"] = self.skipped
        if self.bad.known:
            values["bad"] = len(self.bad.known)
        values["images_per_second"] = round(steps * self.batch_size / seconds, 2)
        values["data_wait"] = round(self._meter.data_wait(), 4)
        if self.samples_per_epoch:
            values["epoch"] = round(self.position / self.samples_per_epoch, 4)
        values["time"] = round(time.time(), 2)
        self._meter.restart(self.step)
        return values
