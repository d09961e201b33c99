"""The memory and the processes that a job will take on this machine, reckoned before its first step.

All numbers are lower bounds: what is refused could not have worked.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from diffpipe.data.decode.latents import are_latents
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.train.activation_memory import activation_bytes
from diffpipe.train.loop import Trainer

WORKER_BYTES = 20_000_000
"""The memory that a loader process takes for itself at least; it shares the rest with the training process."""
_CROWD, _TOO_MANY = 8, 64  # loader processes per processor: too many to help, and too many to run
_LARGEST_GROWTH = 10_000  # a network's activations are at most so many times as large as its input
_WARN_FROM = 0.8


def resource_warnings(experiment: Experiment, trainer: Trainer, shards: ShardSet, shape: ImageShape) -> list[str]:
    """Sentences about what the job will lack. Raises UserError where it cannot work on this machine."""
    data, runtime = experiment.data, trainer.runtime
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    warnings = [*_process_warnings(data.workers * ranks)]
    if data.batch_size > shards.total:
        warnings.append(
            f"data.batch_size={data.batch_size} is more than the {shards.total} samples there are: a step sees samples "
            f"several times"
        )
    micro_batch = -(-data.batch_size // (runtime.world * experiment.train.accumulate))
    slots = data.workers * data.prefetch + 2 * experiment.train.accumulate + 1
    image = data.channels * data.resolution**2
    needs = {
        f"the batches that the loader holds ready ({slots} of {micro_batch} images)": slots * micro_batch * image,
        f"the {data.workers} loader processes": data.workers * WORKER_BYTES,
    }
    if runtime.device.type == "cpu":
        weights = sum(p.numel() * p.element_size() for net in trainer.nets.values() for p in net.parameters())
        needs["gradients and moments"] = 3 * weights
        needs[f"the images of a micro-batch of {micro_batch} as numbers"] = 4 * micro_batch * image
        if not are_latents(shards):
            needs["the activations of the networks"] = micro_batch * _activations(trainer, shape, micro_batch * image)
    return warnings + _memory_warnings({what: ranks * size for what, size in needs.items()}, available_memory())


def _activations(trainer: Trainer, shape: ImageShape, values: int) -> int:
    """Bytes of activations per sample; 0 where they cannot be measured, or cannot matter."""
    small = 4 * values * _LARGEST_GROWTH < available_memory()
    if small or trainer.strategy.mesh is not None or trainer.config.compile:
        return 0

    def samples(n: int) -> Batch:
        images = torch.zeros(n, shape.channels, shape.resolution, shape.resolution, dtype=torch.uint8)
        labels = torch.zeros(n, dtype=torch.int64) if shape.classes else None
        return Batch(images, labels, torch.arange(n), [str(i) for i in range(n)])

    return activation_bytes(trainer.stage, trainer.nets, samples, trainer.runtime)


def _memory_warnings(needs: dict[str, int], available: int) -> list[str]:
    need, (what, most) = sum(needs.values()), max(needs.items(), key=lambda item: item[1])
    sentence = (
        f"the job needs at least {_gigabytes(need)} of memory on this machine, and {_gigabytes(available)} are free; "
        f"{_gigabytes(most)} are for {what}: lower data.batch_size, data.workers or data.prefetch, or raise "
        f"train.accumulate"
    )
    if need > available:
        raise UserError(sentence)
    return [sentence] if need > _WARN_FROM * available else []


def _process_warnings(workers: int) -> list[str]:
    free, processors = available_processes(), len(os.sched_getaffinity(0))
    if 2 * workers > free:  # each has a second thread, which counts
        raise UserError(
            f"data.workers asks for {workers} loader processes on this machine, and {free} more processes and threads "
            f"may run; lower data.workers"
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and 3 * workers > files:
        raise UserError(
            f"data.workers asks for {workers} loader processes on this machine, and a process may have {files} open "
            f"files; lower data.workers, or raise `ulimit -n`"
        )
    sentence = (
        f"data.workers asks for {workers} loader processes on {processors} processors: more than {processors} hardly "
        f"make anything faster"
    )
    if workers > _TOO_MANY * processors:
        raise UserError(f"{sentence}, and so many stop the machine; lower data.workers")
    return [sentence] if workers > _CROWD * processors else []


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def available_memory() -> int:
    """Bytes that this process can still get: the system's free memory, or less where its control group has a limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    limits = [1024 * kilobytes[0]] if kilobytes else []
    for folder in _control_groups("memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            limit, use = _number(folder / most), _number(folder / used)
            if limit is not None and use is not None:
                # Cached file pages count as used, and are given back when needed.
                limits.append(max(0, limit - use + (_cached(folder) or 0)))
    return min(limits, default=1 << 62)


def available_processes() -> int:
    """Processes and threads that this process may still start, by the limits of its control groups and its user."""
    limits = [1 << 22]
    for folder in _control_groups("pids"):
        limit, use = _number(folder / "pids.max"), _number(folder / "pids.current")
        if limit is not None and use is not None:
            limits.append(max(0, limit - use))
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most != resource.RLIM_INFINITY and os.geteuid() != 0:
        limits.append(most)
    threads = _number(Path("/proc/sys/kernel/threads-max"))
    return min([*limits, threads] if threads is not None else limits)


def _control_groups(controller: str) -> list[Path]:
    """The folders of this process's control groups, from its own to the outermost, in version 2 or 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        root = Path("/sys/fs/cgroup") / (controller if controllers else "")
        if not controllers or controller in controllers.split(","):
            path = root / name.lstrip("/")
            folders += [folder for folder in (path, *path.parents) if folder == root or root in folder.parents]
    return folders


def _cached(folder: Path) -> int | None:
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), None)


def _number(path: Path) -> int | None:
    """The number in a file of the system; None where there is none, or `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
