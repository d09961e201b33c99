"""The checks of a job's stage: its networks, what has changed since the checkpoint, memory, disk, and a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from diffpipe.data.decode.latents import are_latents
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.evaluation.validation import held_out_dataset
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.dependencies import resolve
from diffpipe.experiment.doctor import disk, memory, resume
from diffpipe.experiment.doctor.dry_step import dry_step
from diffpipe.experiment.doctor.findings import Diagnosis, Finding
from diffpipe.experiment.initial_weights import weights_source
from diffpipe.experiment.preflight import require_scores
from diffpipe.experiment.preparation import PreparedStage, fit_stage, open_stage
from diffpipe.experiment.resources import JobSize, loader_warnings, memory_warnings
from diffpipe.experiment.run import open_dependency
from diffpipe.interfaces import ImageShape
from diffpipe.machine import available_memory, gigabytes
from diffpipe.train.blocks import require_blocks
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.optimizer import build_optimizers
from diffpipe.train.parallel import copy_size
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values


@dataclass(frozen=True)
class StageCheckup:
    """The checks of the stage of a job of this size. Each adds its findings, and says what it has checked.

    rehearsed: whether the job is of a size that is not running. no_device: whether the config's device is not here; the
    runtime is then on a CPU.
    """

    diagnosis: Diagnosis
    experiment: Experiment
    size: JobSize
    runtime: Runtime
    rehearsed: bool
    no_device: bool

    def check(self, opened: tuple[ShardSet, ImageShape] | None, checkpoint: Checkpoint | None) -> None:
        """All of them. opened: None where the shards cannot be opened. checkpoint: that of the resume, if any."""
        attempt, runtime = self.diagnosis.attempt, self.runtime
        stage = None
        if opened is not None:
            stage = attempt("stage", lambda: open_stage(self.experiment, *opened, checkpoint, runtime))
        if opened is None or stage is None:
            self.check_parts(None if opened is None else opened[0], checkpoint)
            return
        shards, shape = opened
        prepared = attempt("stage", lambda: fit_stage(stage, shards, runtime)) or stage
        if prepared.initial is not None:
            self.diagnosis.checked["resume"] += f", from the weights of {prepared.initial.name}"
        if checkpoint is not None:
            changed = attempt("resume", lambda: resume.changes(checkpoint, prepared.experiment, shape, shards))
            if changed:
                self.diagnosis.checked["resume"] += f", with changes that are allowed: {'; '.join(changed)}"
        nets = without_values(prepared.trained)
        shared_by = self.check_networks(prepared, nets)
        if not self.no_device:
            self.check_memory(prepared, nets, shards, shape, shared_by)
        self.check_disk(prepared, nets, shape)
        if self.rehearsed:
            return
        if any(self.diagnosis.comm.gather(self.diagnosis.errors)):
            self.diagnosis.checked["step"] = "not tried, as there are errors"
            return
        step = attempt("step", lambda: dry_step(prepared, shards, shape, checkpoint, runtime))
        if step is not None:
            self.diagnosis.checked["step"] = step.words
            self.diagnosis.add("step", *step.findings)

    def check_parts(self, shards: ShardSet | None, checkpoint: Checkpoint | None) -> None:
        """The checks that a stage which cannot be built would hide."""
        attempt, experiment, runtime = self.diagnosis.attempt, self.experiment, self.runtime
        attempt("scores", lambda: require_scores(experiment, shards))
        attempt("scores", lambda: held_out_dataset(experiment))
        if shards is None:
            shape = ImageShape(experiment.data.channels, experiment.data.resolution, 0)
            opener = open_dependency(runtime)
            attempt("stage", lambda: resolve(experiment, shape, runtime, opener, training=True, trained=checkpoint))
            if checkpoint is None:
                attempt("stage", lambda: weights_source(experiment, shape, runtime))
        elif checkpoint is not None:
            attempt("resume", lambda: resume.data_changes(checkpoint, experiment, shards))
        self.diagnosis.checked["stage"] = "not built, as there are errors; memory and disk are not checked"

    def check_networks(self, prepared: PreparedStage, nets: Mapping[str, nn.Module]) -> int:
        """The options of the networks and of the optimizer. Returns the processes that share a copy of the networks.

        nets: the trained networks, without values.
        """
        attempt, size, experiment = self.diagnosis.attempt, self.size, prepared.experiment
        train = experiment.train
        fsdp = self.runtime.launched_for_fsdp
        layout = attempt(
            "processes",
            lambda: copy_size(train.parallel, train.shard_size, size.world, size.local, launched_for_fsdp=fsdp),
        )
        kind, shared_by = layout or ("ddp", 1)

        options = train.block_options(None if kind == "ddp" or size.world == 1 else kind)
        attempt("stage", lambda: require_blocks(nets, *options))
        attempt("stage", lambda: build_optimizers(experiment.optimizer, prepared.stage.phases(), nets, scaled=False))
        self.diagnosis.add("processes", memory.padded(nets, shared_by))
        return shared_by

    def check_memory(
        self,
        prepared: PreparedStage,
        nets: Mapping[str, nn.Module],
        shards: ShardSet,
        shape: ImageShape,
        shared_by: int,
    ) -> None:
        """The memory for parameters and what comes with them on a process. shared_by: see `check_networks`."""
        add, attempt, size, experiment = self.diagnosis.add, self.diagnosis.attempt, self.size, prepared.experiment
        runtime = self.runtime
        whole, held, sharded = (memory.model_bytes(nets, experiment, n) for n in (1, shared_by, size.world))
        on_gpu = runtime.device.type == "cuda"
        available = torch.cuda.mem_get_info(runtime.device)[0] if on_gpu else available_memory()
        activations = None
        if not are_latents(shards) and memory.can_be_measured(whole, available):
            activations = attempt(
                "memory", lambda: memory.activations_per_sample(experiment, prepared.trained, shape, runtime)
            )
        micro_batch = size.micro_batch(experiment)
        need = memory.needs(held, activations or 0, micro_batch)
        on_host = {"the copy of a checkpoint that is being saved": whole.checkpoint // size.world}
        if on_gpu:
            smaller = sum(memory.needs(sharded, activations or 0, micro_batch).values())
            add("memory", memory.too_little_on_device(need, available, smaller))
        else:
            on_host |= need
        lacks = attempt("memory", lambda: memory_warnings(experiment, size, on_host)) or []
        lacks = [*loader_warnings(experiment, shards, size), *lacks]
        add("memory", *(Finding("warning", sentence) for sentence in lacks))
        of_process = memory.in_words(whole, sharded, activations, size, micro_batch)
        where = "a GPU" if on_gpu else "this machine"
        self.diagnosis.checked["memory"] = f"{of_process}; {gigabytes(available)} of {where} are free"

    def check_disk(self, prepared: PreparedStage, nets: Mapping[str, nn.Module], shape: ImageShape) -> None:
        """The room for checkpoints and what else is saved."""
        attempt, experiment = self.diagnosis.attempt, prepared.experiment
        whole = memory.model_bytes(nets, experiment)
        free, saved = disk.free_bytes(experiment.run.path), attempt("disk", lambda: disk.saved_bytes(experiment))
        sizes = whole.checkpoint, whole.averages
        self.diagnosis.add("disk", *disk.too_little_room(experiment, shape, *sizes, saved=saved or [], free=free))
        self.diagnosis.checked["disk"] = f"{memory.megabytes(whole.checkpoint)} per checkpoint, {gigabytes(free)} free"
