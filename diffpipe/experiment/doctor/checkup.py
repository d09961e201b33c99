"""All checks of a config, in the order in which a job meets what they are about."""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.dataset import check_split
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor import (
    hardware,
    libraries,
    processes,
    resume,
    run_directory,
    schedule,
    storage,
    trackers,
    weights,
)
from diffpipe.experiment.doctor.findings import Diagnosis, Finding
from diffpipe.experiment.doctor.stage_checkup import StageCheckup
from diffpipe.experiment.load_experiment import load_experiment
from diffpipe.experiment.preflight import cache_warning, enlarged_images, open_data
from diffpipe.experiment.resources import JobSize
from diffpipe.files import user_path
from diffpipe.interfaces import ImageShape
from diffpipe.machine import processor_count
from diffpipe.plural import plural
from diffpipe.process import is_main_process
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
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
    experiment = diagnosis.attempt("config", lambda: load_experiment(config, [*overrides]))
    if experiment is None:
        return diagnosis
    train = experiment.train
    diagnosis.add("schedule", *schedule.too_few_steps(experiment))
    diagnosis.attempt("trackers", lambda: require_installed(train.trackers))
    if is_main_process():
        diagnosis.add("trackers", *trackers.no_access(train.trackers))
    start = functools.partial(Runtime.start, timeout=train.timeout, deterministic=train.deterministic)
    runtime = diagnosis.attempt("device", lambda: start(train.precision, train.device))
    no_device = runtime is None
    if no_device:  # the rest does not depend on it
        runtime = diagnosis.attempt("device", lambda: start("fp32", "cpu"))
    diagnosis.comm = Communicator() if runtime is None else runtime.comm
    size = _job_size(world, machines, diagnosis.comm)
    with runtime or nullcontext():
        checkup = Checkup(diagnosis, experiment, size, rehearsed=world is not None, no_device=no_device)
        checkup.check_directory()
        opened = checkup.check_data()
        checkup.check_scores()
        if runtime is not None:
            checkup.check_device(runtime)
        found = checkup.check_checkpoints()
        if runtime is not None and found is not None:
            rehearsed = world is not None
            StageCheckup(diagnosis, experiment, size, runtime, rehearsed, no_device).check(opened, *found)
    return diagnosis


def _job_size(world: int | None, machines: int | None, comm: Communicator) -> JobSize:
    if world is None:
        return JobSize.launched(comm.world)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else world
    return JobSize(world, min(gpus, world) if machines is None else -(-world // machines))


@dataclass(frozen=True)
class Checkup:
    """The checks of a job of this size. Each adds its findings to the diagnosis, and says what it has checked.

    no_device: whether the device of the config is not here.
    """

    diagnosis: Diagnosis
    experiment: Experiment
    size: JobSize
    rehearsed: bool
    no_device: bool = False

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
        if (sentence := enlarged_images(experiment, shards)) is not None:
            add("data", Finding("note", sentence))
        return opened

    def check_scores(self) -> None:
        """The weights that scores during training need."""
        self.diagnosis.add("scores", *weights.missing_weights(self.experiment))

    def check_device(self, runtime: Runtime) -> None:
        """The device, the precision, the threads and the environment."""
        add, train, size = self.diagnosis.add, self.experiment.train, self.size
        kind = "cuda" if runtime.device.type == "cuda" else "cpu"
        present, usable = any(Path("/dev").glob("nvidia[0-9]*")), torch.cuda.is_available()
        add("device", hardware.unused_gpu(train.device, torch.version.cuda, present=present, usable=usable))
        add("device", *hardware.environment(self.experiment, os.environ))
        if self.no_device:
            return
        native = runtime.in_precision("auto").dtype == torch.bfloat16
        add("device", hardware.unfit_precision(train.precision, kind, native_bf16=native))
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
