"""All checks of a config, in the order in which a job meets what they are about."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from diffpipe.config import load_config
from diffpipe.data.decode.latents import are_latents
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.dataset import check_split
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor import (
    disk,
    hardware,
    libraries,
    memory,
    processes,
    resume,
    run_directory,
    schedule,
    storage,
    weights,
)
from diffpipe.experiment.doctor.dry_step import dry_step
from diffpipe.experiment.doctor.findings import Diagnosis, Finding
from diffpipe.experiment.preflight import cache_warning, open_data
from diffpipe.experiment.preparation import PreparedStage, prepare_stage
from diffpipe.experiment.resources import JobSize, memory_warnings
from diffpipe.files import user_path
from diffpipe.interfaces import ImageShape
from diffpipe.machine import available_memory, gigabytes, processor_count
from diffpipe.plural import plural
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.blocks import require_blocks
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator
from diffpipe.train.optimizer import build_optimizers
from diffpipe.train.parallel import copy_size
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values
from diffpipe.train.trackers import require_installed


def diagnose(
    config: str | Path, overrides: Sequence[str] = (), *, world: int | None = None, machines: int | None = None
) -> Diagnosis:
    """The findings on a training of this config that would break, or be slow. A collective that writes nothing.

    world: the processes of a job that is rehearsed, by arithmetic alone; None: those that are running, which take a
    step. machines: those of the rehearsed job; None: as many as its GPUs need.
    """
    diagnosis = Diagnosis()
    diagnosis.add("libraries", *libraries.wrong_versions(metadata.requires, metadata.version))
    diagnosis.checked["libraries"] = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "accelerate"))
    experiment = diagnosis.attempt("config", lambda: load_config(Experiment, config, [*overrides]))
    if experiment is None:
        return diagnosis
    train = experiment.train
    diagnosis.add("schedule", *schedule.too_few_steps(experiment))
    diagnosis.attempt("trackers", lambda: require_installed(train.trackers))
    runtime = diagnosis.attempt(
        "device",
        lambda: Runtime.start(train.precision, train.device, timeout=train.timeout, deterministic=train.deterministic),
    )
    diagnosis.comm = Communicator() if runtime is None else runtime.comm
    size = _job_size(world, machines, diagnosis.comm)
    with runtime or nullcontext():
        checkup = Checkup(diagnosis, experiment, size, rehearsed=world is not None)
        checkup.check_directory()
        opened = checkup.check_data()
        checkup.check_scores()
        if runtime is not None:
            checkup.check_device(runtime)
        found = checkup.check_checkpoints()
        if runtime is not None and opened is not None and found is not None:
            checkup.check_stage(runtime, *opened, *found)
    return diagnosis


def _job_size(world: int | None, machines: int | None, comm: Communicator) -> JobSize:
    if world is None:
        return JobSize.launched(comm.world)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else world
    return JobSize(world, min(gpus, world) if machines is None else -(-world // machines))


@dataclass(frozen=True)
class Checkup:
    """The checks of a job of this size. Each adds its findings to the diagnosis, and says what it has checked."""

    diagnosis: Diagnosis
    experiment: Experiment
    size: JobSize
    rehearsed: bool

    def check_directory(self) -> None:
        """The run directory, before anything is read from it."""
        path, mounts = self.experiment.run.path, Path("/proc/mounts")
        self.diagnosis.add("run directory", *run_directory.refusals(self.experiment))
        text = mounts.read_text(encoding="utf-8", errors="replace") if mounts.exists() else ""
        self.diagnosis.add("run directory", run_directory.not_shared(path, self.size, text))
        self.diagnosis.checked["run directory"] = str(path)

    def check_data(self) -> tuple[ShardSet, ImageShape] | None:
        """The shards, and how the processes share them. None where they cannot be opened."""
        add, experiment, size = self.diagnosis.add, self.experiment, self.size
        add("data", *storage.access(storage.remote_urls(experiment), os.environ, user_path("~")))
        add("processes", processes.uneven_shares(experiment, size))
        machines = plural(size.machines, "machine")
        self.diagnosis.checked["processes"] = (
            f"{size.world} on {machines}, micro-batches of {plural(size.micro_batch(experiment), 'image')}"
        )
        if size.world > 1:
            accumulate = experiment.train.accumulate
            self.diagnosis.attempt("processes", lambda: check_split(experiment.data, size.world, accumulate))
        opened = self.diagnosis.attempt("data", lambda: open_data(experiment, 1))
        if opened is None:
            return None
        shards, _ = opened
        self.diagnosis.checked["data"] = (
            f"{plural(shards.total, 'sample')} in {plural(len(shards.paths), 'shard')}, fingerprint "
            f"{shards.fingerprint[:16]}"
        )
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limit = None if most == resource.RLIM_INFINITY else most
        add("processes", processes.too_few_files(experiment, shards, size, limit))
        add("data", processes.shared_lanes(experiment, shards, size))
        if (sentence := cache_warning(experiment, shards, size)) is not None:
            add("data", Finding("warning", sentence))
        return opened

    def check_scores(self) -> None:
        """The weights that scores during training need."""
        self.diagnosis.add("scores", *weights.missing_weights(self.experiment))

    def check_device(self, runtime: Runtime) -> None:
        """The device, the precision, the threads and the environment."""
        add, train, size = self.diagnosis.add, self.experiment.train, self.size
        kind = "cuda" if runtime.device.type == "cuda" else "cpu"
        native = runtime.in_precision("auto").dtype == torch.bfloat16
        add("device", hardware.unfit_precision(train.precision, kind, native_bf16=native))
        present, usable = any(Path("/dev").glob("nvidia[0-9]*")), torch.cuda.is_available()
        add("device", hardware.unused_gpu(train.device, torch.version.cuda, present=present, usable=usable))
        add("device", *hardware.environment(self.experiment, os.environ))
        if kind == "cpu":
            # The launcher of several processes gives each a thread, unless the variable is set.
            launched_later = self.rehearsed and size.local > 1 and "OMP_NUM_THREADS" not in os.environ
            threads = 1 if launched_later else torch.get_num_threads()
            add("processes", processes.too_many_threads(size, threads, processor_count()))
        self.diagnosis.checked["device"] = f"{runtime.device}, {str(runtime.dtype).removeprefix('torch.')}"

    def check_checkpoints(self) -> tuple[Checkpoint | None] | None:
        """The checkpoint that the run resumes from, if any. None where it has some and none is whole."""
        folder = self.experiment.run.checkpoints
        newest = self.diagnosis.attempt("resume", lambda: checkpoints.newest_valid(folder, self.diagnosis.comm))
        if newest is None:
            return None
        checkpoint, damages = newest
        self.diagnosis.add("resume", *resume.damaged(damages))
        self.diagnosis.checked["resume"] = "a new run" if checkpoint is None else f"from step {checkpoint.step}"
        return (checkpoint,)

    def check_stage(self, runtime: Runtime, shards: ShardSet, shape: ImageShape, checkpoint: Checkpoint | None) -> None:
        """The stage, what has changed since the checkpoint, memory and disk, and a step."""
        attempt = self.diagnosis.attempt
        prepared = attempt("stage", lambda: prepare_stage(self.experiment, shards, shape, checkpoint, runtime))
        if prepared is None:
            return
        if prepared.initial is not None:
            self.diagnosis.checked["resume"] += f", from the weights of {prepared.initial.name}"
        if checkpoint is not None:
            changed = attempt("resume", lambda: resume.changes(checkpoint, prepared.experiment, shape, shards))
            if changed:
                self.diagnosis.checked["resume"] += f", with changes that are allowed: {'; '.join(changed)}"
        self.check_memory(runtime, prepared, shards, shape)
        if self.rehearsed:
            return
        if any(self.diagnosis.comm.gather(self.diagnosis.errors)):
            self.diagnosis.checked["step"] = "not tried, as there are errors"
            return
        step = attempt("step", lambda: dry_step(prepared, shards, shape, checkpoint, runtime))
        if step is not None:
            self.diagnosis.checked["step"] = step.words
            self.diagnosis.add("step", *step.findings)

    def check_memory(self, runtime: Runtime, prepared: PreparedStage, shards: ShardSet, shape: ImageShape) -> None:
        """Parameters and what comes with them on a process, and their files on the disk."""
        add, attempt, size, experiment = self.diagnosis.add, self.diagnosis.attempt, self.size, prepared.experiment
        train, nets = experiment.train, without_values(prepared.trained)
        fsdp = runtime.launched_for_fsdp
        layout = attempt(
            "processes",
            lambda: copy_size(train.parallel, train.shard_size, size.world, size.local, launched_for_fsdp=fsdp),
        )
        kind, shared_by = layout or ("ddp", 1)

        def require_options() -> None:
            require_blocks(nets, *train.block_options(None if kind == "ddp" or size.world == 1 else kind))
            build_optimizers(experiment.optimizer, prepared.stage.phases(), nets, scaled=False)

        attempt("stage", require_options)
        add("processes", memory.padded(nets, shared_by))
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
        lacks = attempt("memory", lambda: memory_warnings(experiment, shards, size, on_host))
        add("memory", *(Finding("warning", sentence) for sentence in lacks or ()))
        of_process = memory.in_words(whole, sharded, activations, size, micro_batch)
        where = "a GPU" if on_gpu else "this machine"
        self.diagnosis.checked["memory"] = f"{of_process}; {gigabytes(available)} of {where} are free"
        free, saved = disk.free_bytes(experiment.run.path), attempt("disk", lambda: disk.saved_bytes(experiment))
        sizes = whole.checkpoint, whole.averages
        add("disk", *disk.too_little_room(experiment, shape, *sizes, saved=saved or [], free=free))
        self.diagnosis.checked["disk"] = f"{memory.megabytes(whole.checkpoint)} per checkpoint, {gigabytes(free)} free"
