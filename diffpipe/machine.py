"""The memory and the processes that this machine has left, and numbers of processes that it cannot hold."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.plural import plural

WORKER_BYTES = 20_000_000
"""The memory that a worker process takes for itself at least; it shares the rest with the process that forked it."""
TRAINING_BYTES = 100_000_000
"""The memory that a training process takes for itself at least."""
_CROWD, _TOO_MANY = 8, 64  # processes per processor: too many to help, and too many to run


def process_warnings(option: str, count: int, kind: str = "processes", size: int = WORKER_BYTES) -> list[str]:
    """Sentences about `count` more processes. Raises UserError where this machine cannot hold them.

    option: the option or config key that asks for them. kind: what they are, in the plural. size: the bytes that each
    takes for itself at least.
    """
    asked, free, processors = f"{option} asks for {count} {kind}", available_processes(), processor_count()
    if 2 * count > free:  # each has a second thread, which counts
        raise UserError(f"{asked} on this machine, and {free} more processes and threads may run; lower {option}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and 3 * count > files:
        raise UserError(
            f"{asked} on this machine, and a process may have {files} open files; lower {option}, or raise `ulimit -n`"
        )
    crowd = f"{asked} on {plural(processors, 'processor')}: more than {processors} hardly make anything faster"
    if count > _TOO_MANY * processors:
        raise UserError(f"{crowd}, and so many stop the machine; lower {option}")
    need, memory = count * size, available_memory()
    if need > memory:
        raise UserError(
            f"{asked}, which need {gigabytes(need)} of memory or more, and {gigabytes(memory)} are free; lower {option}"
        )
    return [f"{crowd}; lower {option}"] if count > _CROWD * processors else []


def processor_count() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def gigabytes(size: int) -> str:
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
