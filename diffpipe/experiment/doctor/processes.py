"""The processes of a job: how they share the batch and the shards, their threads and their open files."""

from __future__ import annotations

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import mixture
from diffpipe.data.loader.dataset import open_files
from diffpipe.data.loader.mixture import Mixture
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.experiment.resources import JobSize
from diffpipe.plural import plural

_IDLE = 0.1
_GROUPS = 3  # of processes: the default one, that of the stop flags, that of the saves
_OTHER_FILES = 64  # libraries, logs, pipes


def uneven_shares(experiment: Experiment, size: JobSize) -> Finding | None:
    """A finding where a batch divides so unevenly that processes with a smaller share wait for the others."""
    batch, parts = experiment.data.batch_size, size.world * experiment.train.accumulate
    largest = size.micro_batch(experiment)
    idle = 1 - batch / (parts * largest)
    if batch < parts or idle < _IDLE:
        return None
    return Finding(
        "warning",
        f"data.batch_size={batch} is shared by {plural(size.world, 'process', 'processes')}, and micro-batches have "
        f"{largest - 1} or {largest} images: {idle:.0%} of the time is spent waiting for the larger ones; set "
        f"data.batch_size={parts * largest}",
    )


def shared_lanes(experiment: Experiment, shards: ShardSet, size: JobSize) -> Finding | None:
    """A finding where every machine would fetch all remote shards instead of its part of them."""
    data, world = experiment.data, size.world
    local = all(shard.remote is None for shard in shards.shards)
    if size.machines == 1 or local or shards.total <= data.shuffle_window:
        return None
    order = mixture.build_order(shards, experiment.seed, data)
    lanes = order.columns if isinstance(order, Mixture) else order.lanes
    if lanes % world == 0 and data.batch_size % world == 0:
        return None
    remedy = "take a power of two of processes"  # as the number of lanes is one
    if world & (world - 1) == 0:
        remedy = (
            f"set data.batch_size to a multiple of {world}, data.interleave={max(lanes, world)} and "
            f"data.shuffle_window={max(data.shuffle_window, world**2)}"
        )
    return Finding(
        "warning",
        f"{plural(world, 'process', 'processes')} on {size.machines} machines share {plural(lanes, 'lane')} of remote "
        f"shards and batches of {data.batch_size}: each machine fetches all shards, as {world} does not divide both; "
        f"{remedy}",
    )


def too_many_threads(size: JobSize, threads: int, processors: int) -> Finding | None:
    """A finding where the processes of this machine compute on the CPU with more threads than it has processors.

    threads: of each process.
    """
    if size.local * threads <= processors or threads == 1:
        return None
    return Finding(
        "warning",
        f"{plural(size.local, 'process', 'processes')} with {threads} threads each compute on "
        f"{plural(processors, 'processor')}, which can be ten times slower; set OMP_NUM_THREADS="
        f"{max(1, processors // size.local)}",
    )


def too_few_files(experiment: Experiment, shards: ShardSet, size: JobSize, limit: int | None) -> Finding | None:
    """A finding where a process needs more open files than it may have. limit: the hard one; None: there is none."""
    connections = _GROUPS * (size.world + 3) if size.world > 1 else 0
    order = mixture.build_order(shards, experiment.seed, experiment.data)
    need = connections + open_files(order) + 3 * experiment.data.workers + _OTHER_FILES
    if limit is None or need <= limit:
        return None
    return Finding(
        "error",
        f"a process of {size.world} needs about {need} open files, for connections and shards, and it may have "
        f"{limit}; raise `ulimit -Hn`",
    )
