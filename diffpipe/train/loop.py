"""The training loop: for each step, each due phase's micro-batches, one update; then averages, counters, hooks.

Between two log steps the host never waits for the device: losses, gradient norms and the finite checks stay there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffpipe.errors import RankError, UserError
from diffpipe.interfaces import Batch, Loss, Phase, Stage
from diffpipe.rng import KeyedRNG, fold_in
from diffpipe.train.bad_samples import BadSamples
from diffpipe.train.blocks import checkpoint_activations, compile_blocks, uncompiled
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import ModelEMA, EMAConfig
from diffpipe.train.logs import MetricsLog, SampleLog, progress_bar
from diffpipe.train.meter import Meter, NonFiniteUpdate
from diffpipe.train.optimizer import Optimizer, OptimizerConfig
from diffpipe.train.parallel import ParallelStrategy, full_tensor
from diffpipe.train.runtime import Runtime


class Hook(NamedTuple):
    """Something to do after every `every` steps (0: never) and, if `last`, after the last one. All ranks call it.

    What it returns, if anything, is logged with the step; so it runs before those that return nothing.
    """

    every: int
    run: Callable[[], Mapping[str, float] | None]
    last: bool = False
    measures: bool = False

    def due(self, step: int, steps: int) -> bool:
        return (self.every > 0 and step % self.every == 0) or (self.last and step == steps)


class NonFiniteError(UserError):
    """A loss or a gradient was NaN or infinite, and the run was not to skip it. No weight was changed by it."""


class Trainer:
    """Trains a stage's networks from a stream of batches.

    step: the finished steps, 0 at the start. position: of the next sample in the stream, which is how many were seen.
    skipped: the updates among the steps that were not finite. bad: the samples that could not be had.
    """

    def __init__(
        self,
        stage: Stage,
        runtime: Runtime,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        ema: EMAConfig,
        *,
        seed: int,
        batch_size: int,
        max_bad_samples: int = 0,
    ):
        self.stage, self.runtime, self.config, self.seed, self.batch_size = stage, runtime, config, seed, batch_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold_in(seed, "init"))
            self.nets: dict[str, nn.Module] = {name: runtime.place(net) for name, net in stage.networks().items()}
        self.averages = {name: ModelEMA(ema, net) for name, net in self.nets.items()}
        self.strategy = ParallelStrategy.of(config.parallel, config.shard_size, runtime)
        for name, net in self.nets.items():
            if config.activation_checkpointing:
                checkpoint_activations(net)
            if config.compile:
                compile_blocks(net)
            self.strategy.shard(net)
            self.strategy.shard(self.averages[name].net)
        self.wrapped = {name: self.strategy.wrap(net.train()) for name, net in self.nets.items()}
        self.optimizer_config = optimizer
        unknown = optimizer.lr_factors.keys() - self.nets.keys()
        if unknown:
            raise UserError(
                f"optimizer.lr_factors names {', '.join(sorted(unknown))}, and this stage's networks are "
                f"{', '.join(self.nets)}"
            )
        self.optimizers = {
            trains: Optimizer(
                optimizer, {name: self.nets[name] for name in trains}, scaled=runtime.dtype == torch.float16
            )
            for trains in dict.fromkeys(phase.trains for phase in stage.phases())
        }
        self.step = self.position = self.skipped = 0
        self.bad = BadSamples(max_bad_samples, runtime.comm)
        self._meter = Meter()
        self._buckets_settled: set[str] = set()  # networks whose first backward pass is over: see Layout.in_buckets

    def ema_networks(self) -> dict[str, nn.Module]:
        """The averaged networks, whole: what generates and is scored. A collective where they are sharded."""
        nets = {name: average.net for name, average in self.averages.items()}
        if self.strategy.mesh is None:
            return nets
        with torch.random.fork_rng(devices=[]):
            copies = {name: self.runtime.place(net) for name, net in self.stage.networks().items()}
        for name, copy in copies.items():
            copy.load_state_dict({key: full_tensor(value) for key, value in nets[name].state_dict().items()})
            copy.requires_grad_(False).eval()
        return copies

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint holds, by name. Loading writes into these very tensors."""
        tensors: dict[str, Tensor] = {}
        for name, net in self.nets.items():
            tensors |= {f"net.{name}.{key}": value for key, value in net.state_dict().items()}
            tensors |= {f"ema.{name}.{key}": value for key, value in self.averages[name].net.state_dict().items()}
        names = {p: f"{name}.{key}" for name, net in self.nets.items() for key, p in net.named_parameters()}
        for trains, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{'+'.join(trains)}.{key}": t for key, t in optimizer.state(names).items()}
        return tensors

    def run(
        self,
        batches: Iterator[Batch],
        hooks: Sequence[Hook],
        run_dir: Path,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train from `self.step` to the last step. `batches` yields this rank's micro-batches from `self.position` on.

        stop: called by all ranks after each step; where it says so, on all, that step was the last one for now, and
        only logged.

        Raises NonFiniteError, on all ranks, at the first log step after a loss or gradient that is not finite and not
        to be skipped, BadSamplesError likewise after too many bad samples, and RankError where this rank alone cannot
        read one and none may be bad.
        """
        journal = MetricsLog(run_dir / "metrics.jsonl", self.runtime, self.step)
        seen = SampleLog(run_dir, self.runtime.rank) if self.config.record_samples else None
        bar = progress_bar("train", "step", self.config.steps, self.runtime, first=self.step)
        self._meter.restart(self.step)
        stopping = False
        try:
            while self.step < self.config.steps and not stopping:
                micro = self._next(batches)
                self.bad.meet(self.step, micro)
                if seen is not None:
                    seen.write(self.step, micro)
                self.train_step(micro)
                bar.update()
                stopping = stop() and self.step < self.config.steps
                due = [] if stopping else [hook for hook in hooks if hook.due(self.step, self.config.steps)]
                # What is saved or scored has been found finite first.
                if due or stopping or self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    values = self._log_values()
                    for hook in [hook for hook in due if hook.measures]:
                        values |= hook.run() or {}
                    journal.write(values)
                    bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} images/s")
                for hook in [hook for hook in due if not hook.measures]:
                    hook.run()
                self._meter.skip_time() if due else None
        finally:
            bar.close()
            journal.close()
            if seen is not None:
                seen.close()

    def _next(self, batches: Iterator[Batch]) -> list[Batch]:
        try:
            return [next(batches) for _ in range(self.config.accumulate)]
        except UserError as error:
            raise RankError(f"step {self.step}, rank {self.runtime.rank}: {error}") from error

    def train_step(self, micro: Sequence[Batch]) -> None:
        """One step on this rank's micro-batches: every due phase's update, then the averages."""
        micro = [self._to_device(batch) for batch in micro]
        weight = self._weight(micro)
        for phase in self.stage.phases():
            if phase.due(self.step):
                self._update(phase, micro, weight)
        for average in self.averages.values():
            average.update(self.step)
        self.step += 1
        self.position += self.batch_size

    def _weight(self, micro: Sequence[Batch]) -> float | Tensor:
        """Of a sample in the loss, by the number of valid samples in the step.

        Gradients are averaged over ranks: times the world size they are the sum over the global batch, however unevenly
        it falls on ranks and micro-batches. A collective where samples may be bad. The host waits for no device.
        """
        mine = [batch.valid.sum() for batch in micro if batch.valid is not None]
        if not mine:
            return self.runtime.world / self.batch_size
        valid = self.runtime.comm.sum(torch.stack(mine).sum()).clamp(min=1)
        # Where all are valid, the very float32 that the quotient above becomes.
        return (self.runtime.world / valid.double()).float()

    def _update(self, phase: Phase, micro: Sequence[Batch], weight: float | Tensor) -> None:
        optimizer = self.optimizers[phase.trains]
        # A network that the phase does not train passes gradients on to those that it does, without the wrapper,
        # whose reduction would wait for gradients that never come.
        nets = {name: self.wrapped[name] if name in phase.trains else self.nets[name] for name in self.nets}
        for name, net in self.nets.items():
            net.requires_grad_(name in phase.trains)
        plain = uncompiled(apply=phase.penalizes and self.config.compile)
        with self.strategy.update([*self.wrapped.values()], penalizes=phase.penalizes), plain:
            if self.strategy.in_buckets and not self._buckets_settled.issuperset(phase.trains):
                self._forward_backward(phase, nets, micro[0], weight, 0, last=True)
                optimizer.zero_grad()
                self._buckets_settled.update(phase.trains)
            for i, batch in enumerate(micro):
                loss = self._forward_backward(phase, nets, batch, weight, i, last=i == len(micro) - 1)
                self._meter.add_loss(self.step, self._label(phase), batch, loss)
        norm = optimizer.step(self.optimizer_config.lr_at(self.step, self.config.steps))
        self._meter.add_norm(self.step, self._label(phase), norm)

    def _forward_backward(
        self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, weight: float | Tensor, i: int, *, last: bool
    ) -> Loss:
        """Forward and backward on micro-batch i; after the last one the gradients are those of the global batch."""
        torch.manual_seed(fold_in(self.seed, "network", phase.name, self.step, self.runtime.rank, i))
        with nullcontext() if last else self.strategy.local([*self.wrapped.values()]):
            with self.runtime.autocast():
                loss = self.stage.loss(phase, nets, batch, KeyedRNG(self.seed, batch.positions))
            losses = loss.per_sample if batch.valid is None else loss.per_sample.where(batch.valid, 0)
            self.optimizers[phase.trains].backward(losses.sum() * weight)
        return loss

    def _label(self, phase: Phase) -> str:
        return f"{phase.name}/" if len(self.stage.phases()) > 1 else ""

    def _to_device(self, batch: Batch) -> Batch:
        move: dict[str, Any] = {"device": self.runtime.device, "non_blocking": True}
        labels = None if batch.labels is None else batch.labels.to(**move)
        valid = None if batch.valid is None else batch.valid.to(**move)
        images = batch.images.to(**move, memory_format=self.runtime.memory_format)
        return batch._replace(images=images, labels=labels, positions=batch.positions.to(**move), valid=valid)

    def _log_values(self) -> dict[str, Any]:
        """The means since the last log step, over all ranks. Waits for the device; all ranks call it."""
        self._handle_nonfinite(self._meter.nonfinite_updates(self.runtime))
        self.bad.agree()
        means, seconds = self._meter.means(self.runtime)
        steps = self.step - self._meter.first
        values: dict[str, Any] = {"step": self.step, "images": self.position}
        if "loss" not in means:  # several phases: the step's loss is their sum
            values["loss"] = sum(value for key, value in means.items() if key.endswith("/loss"))
        values |= means
        values["lr"] = self.optimizer_config.lr_at(self.step - 1, self.config.steps)
        if self.skipped:
            values["skipped"] = self.skipped
        if self.bad.known:
            values["bad"] = len(self.bad.known)
        values["images_per_second"] = round(steps * self.batch_size / seconds, 2)
        self._meter.restart(self.step)
        return values

    def _handle_nonfinite(self, found: Sequence[NonFiniteUpdate]) -> None:
        """Stop or go on after updates that were left out, the same on all ranks."""
        if not found:
            return
        self.skipped += len({(one.step, one.update) for one in found})
        what = "; ".join(map(str, found[:4])) + (f"; {len(found) - 4} more" if len(found) > 4 else "")
        if self.config.non_finite == "skip" and self.skipped <= self.config.max_skips:
            if self.runtime.main:
                tqdm.write(f"warning: {what}; skipped, {self.skipped} of {self.config.max_skips}", file=sys.stderr)
            return
        skip = "or set train.non_finite=skip"
        if self.config.non_finite == "skip":
            skip = f"{self.skipped} updates were skipped and train.max_skips is {self.config.max_skips}"
        raise NonFiniteError(
            f"{what}. No weight was changed by it. Lower optimizer.lr or look at these samples, {skip}; the same "
            f"command goes on from the last checkpoint"
        )
