"""The memory and the processes that a job will take on this machine, reckoned before its first step.

All numbers are lower bounds: what is refused could not have worked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from diffpipe.data.decode.latents import are_latents
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.machine import WORKER_BYTES, available_memory, gigabytes, process_warnings
from diffpipe.plural import plural
from diffpipe.train.activation_memory import activation_bytes
from diffpipe.train.loop import Trainer
from diffpipe.train.parallel import trainable_parameters

_LARGEST_GROWTH = 10_000  # a network's activations are at most so many times as large as its input
_WARN_FROM = 0.8


class JobSize(NamedTuple):
    """The processes of a job: all of them, and those of this machine."""

    world: int
    local: int

    @classmethod
    def launched(cls, world: int) -> JobSize:
        """The size of the job that the launcher has started."""
        return cls(world, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    @property
    def machines(self) -> int:
        return -(-self.world // self.local)

    def micro_batch(self, experiment: Experiment) -> int:
        """The largest micro-batch of a process."""
        return -(-experiment.data.batch_size // (self.world * experiment.train.accumulate))


def resource_warnings(experiment: Experiment, trainer: Trainer, shards: ShardSet, shape: ImageShape) -> list[str]:
    """Sentences about what the job will lack. Raises UserError where it cannot work on this machine."""
    size, networks = JobSize.launched(trainer.runtime.world), {}
    if trainer.runtime.device.type == "cpu":
        weights = sum(p.numel() * p.element_size() for net in trainer.nets.values() for p in trainable_parameters(net))
        networks["gradients and moments"] = 3 * weights
        if not are_latents(shards):
            micro_batch = size.micro_batch(experiment)
            values = micro_batch * shape.channels * shape.resolution.pixels
            networks["the activations of the networks"] = micro_batch * _activations(trainer, shape, values)
    return loader_warnings(experiment, shards, size) + memory_warnings(experiment, size, networks)


def loader_warnings(experiment: Experiment, shards: ShardSet, size: JobSize) -> list[str]:
    """Sentences on loader processes and batches that are too many or too large."""
    data = experiment.data
    warnings = process_warnings("data.workers", data.workers * size.local, "loader processes", size=0)
    if data.batch_size > shards.total:
        warnings.append(
            f"data.batch_size={data.batch_size} is more than there are samples ({shards.total}): a step sees samples "
            f"several times; lower it"
        )
    return warnings


def memory_warnings(experiment: Experiment, size: JobSize, networks: Mapping[str, int]) -> list[str]:
    """A sentence where this machine's memory is hardly enough. Raises UserError where it is not.

    networks: the bytes that each process needs for its networks, by what they are for; none on a GPU.
    """
    data, micro_batch = experiment.data, size.micro_batch(experiment)
    slots = data.workers * data.prefetch + 2 * experiment.train.accumulate + 1
    image, images = data.channels * data.resolution.pixels, plural(micro_batch, "image")
    needs = {
        f"the batches that the loader holds ready ({slots} of {images})": slots * micro_batch * image,
        f"the {plural(data.workers, 'loader process', 'loader processes')}": data.workers * WORKER_BYTES,
    }
    if networks:
        needs[f"the images of a micro-batch of {micro_batch} as numbers"] = 4 * micro_batch * image
    needs |= networks
    return _memory_warnings({what: size.local * need for what, need in needs.items()}, available_memory())


def _activations(trainer: Trainer, shape: ImageShape, values: int) -> int:
    """Bytes of activations per sample; 0 where they cannot be measured, or cannot matter."""
    small = 4 * values * _LARGEST_GROWTH < available_memory()
    if small or trainer.strategy.mesh is not None or trainer.config.compile:
        return 0

    return activation_bytes(trainer.stage, trainer.nets, blank_samples(shape), trainer.runtime)


def blank_samples(shape: ImageShape) -> Callable[[int], Batch]:
    """A batch of so many black images, of class 0."""

    def samples(n: int) -> Batch:
        images = torch.zeros(n, *shape.chw, dtype=torch.uint8)
        labels = torch.zeros(n, dtype=torch.int64) if shape.classes else None
        return Batch(images, labels, torch.arange(n), [str(i) for i in range(n)])

    return samples


def _memory_warnings(needs: dict[str, int], available: int) -> list[str]:
    need, (what, most) = sum(needs.values()), max(needs.items(), key=lambda item: item[1])
    sentence = (
        f"the job needs at least {gigabytes(need)} of memory on this machine, and {gigabytes(available)} are free; "
        f"{gigabytes(most)} are for {what}: lower data.batch_size, data.workers or data.prefetch, or raise "
        f"train.accumulate"
    )
    if need > available:
        raise UserError(sentence)
    return [sentence] if need > _WARN_FROM * available else []
