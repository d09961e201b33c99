"""The memory that each process of a job needs, under DDP and under FSDP, against its device's or its machine's.

All numbers are lower bounds. The activations are measured on one and on two samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.experiment.resources import JobSize, blank_samples
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.machine import gigabytes
from diffpipe.train.activation_memory import TooSlowError, activation_bytes_of
from diffpipe.train.blocks import checkpoint_activations
from diffpipe.train.initialization import initial_networks
from diffpipe.train.muon import hidden_matrices
from diffpipe.train.parallel import trainable_parameters
from diffpipe.train.runtime import Runtime

_PADDED = 1.25
_SECONDS = 5.0


class ModelBytes(NamedTuple):
    """The bytes of networks, of their gradients, of the optimizer's moments and of the averages, on one process."""

    networks: int
    gradients: int
    moments: int
    averages: int

    @property
    def checkpoint(self) -> int:
        """The bytes of a checkpoint, where these are of whole networks."""
        return self.networks + self.moments + self.averages


def model_bytes(nets: Mapping[str, nn.Module], experiment: Experiment, shards: int = 1) -> ModelBytes:
    """The bytes on a process that holds one of so many shards of the networks, which may be on the meta device.

    FSDP gives each process as many rows of a tensor as the first one has, and some of them pad it.
    """
    optimizer = experiment.optimizer
    parameters = [p for net in nets.values() for p in net.parameters()]
    trained = [p for net in nets.values() for p in trainable_parameters(net)]
    persistent = {id(value) for net in nets.values() for value in net.state_dict(keep_vars=True).values()}
    buffers = sum(b.nbytes for net in nets.values() for b in net.buffers() if id(b) in persistent)
    matrices = set[Tensor]()
    if optimizer.kind == "muon":
        found = [hidden_matrices(net, convolutions=optimizer.muon_convolutions) for net in nets.values()]
        matrices = {p for of_net in found for p in of_net}
    weights, gradients = (sum(_shard_bytes(p, shards) for p in some) for some in (parameters, trained))
    moments = sum(_shard_bytes(p, shards) * (1 if p in matrices else 2) for p in trained)
    averages = len(experiment.ema.decays) * (gradients + buffers)
    return ModelBytes(weights + buffers, gradients, moments, averages)


def activations_per_sample(experiment: Experiment, stage: Stage, shape: ImageShape, runtime: Runtime) -> int | None:
    """Bytes of activations per sample, as the device computes them; None where that takes too long."""
    nets = initial_networks(stage, runtime, experiment.seed)
    if experiment.train.activation_checkpointing:
        for net in nets.values():
            checkpoint_activations(net)
    try:
        return activation_bytes_of(stage, nets, blank_samples(shape), runtime, _SECONDS)
    except TooSlowError:  # a large network on a CPU
        return None


def needs(model: ModelBytes, activations: int, micro_batch: int) -> dict[str, int]:
    """The needs of a process for its networks, in words, and their bytes. activations: per sample."""
    return {
        "parameters": model.networks,
        "averages": model.averages,
        "gradients and moments": model.gradients + model.moments,
        "the activations of the networks": micro_batch * activations,
    }


def too_little_on_device(need: Mapping[str, int], available: int, smaller: int) -> Finding | None:
    """A finding where a GPU cannot hold what a process needs, or hardly.

    smaller: what the process would need under FSDP.
    """
    total, what = sum(need.values()), max(need, key=lambda name: need[name])
    if total <= 0.8 * available:
        return None
    fsdp = ", or train.parallel=fsdp" if smaller < 0.8 * min(total, available) else ""
    return Finding(
        "error" if total > available else "warning",
        f"each process needs at least {gigabytes(total)} of its GPU's memory, {gigabytes(need[what])} of them for "
        f"{what}, and {gigabytes(available)} are free; raise train.accumulate, set "
        f"train.activation_checkpointing=true{fsdp}",
    )


def padded(nets: Mapping[str, nn.Module], shards: int) -> Finding | None:
    """A finding where tensors have fewer rows than there are processes to share them, so that most is padding."""
    parameters = [p for net in nets.values() for p in net.parameters()]
    whole = sum(p.nbytes for p in parameters)
    held = shards * sum(_shard_bytes(p, shards) for p in parameters)
    if held <= _PADDED * whole:
        return None
    return Finding(
        "warning",
        f"train.parallel shards over {shards} processes, and many tensors have fewer rows: together they hold "
        f"{held / whole:.1f} times the networks; set train.parallel=hsdp, which shards within a machine, or a smaller "
        f"train.shard_size",
    )


def in_words(whole: ModelBytes, sharded: ModelBytes, activations: int | None, size: JobSize, micro_batch: int) -> str:
    """The memory of a process under DDP and FSDP."""
    parts = {
        "parameters": whole.networks,
        "gradients": whole.gradients,
        "moments": whole.moments,
        "averages": whole.averages,
    }
    rest = 0 if activations is None else micro_batch * activations
    if activations is not None:
        parts[f"activations of {micro_batch}"] = rest
    listed = ", ".join(f"{name} {megabytes(n)}" for name, n in parts.items())
    if activations is None:
        listed += ", activations not measured"
    total = megabytes(sum(whole) + rest)
    if size.world == 1:
        return f"{total} per process ({listed})"
    return f"{total} per process under ddp ({listed}), {megabytes(sum(sharded) + rest)} under fsdp"


def can_be_measured(model: ModelBytes, available: int) -> bool:
    """Whether there is room enough to draw the networks, and to measure their activations on a copy."""
    return 3 * model.networks < 0.5 * available


def _shard_bytes(tensor: Tensor, shards: int) -> int:
    if shards == 1 or tensor.ndim == 0:
        return tensor.nbytes
    rows = tensor.shape[0]
    return -(-rows // shards) * math.prod(tensor.shape[1:]) * tensor.element_size()


def megabytes(size: int) -> str:
    """The size in megabytes, or in gigabytes where it is large."""
    return gigabytes(size) if size >= 10**9 else f"{size / 1e6:.1f} MB"
