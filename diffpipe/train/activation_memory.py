"""The memory that a sample's activations take between the forward and the backward pass."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from diffpipe.interfaces import Batch, Phase, Stage
from diffpipe.rng import KeyedRNG
from diffpipe.train.parallel import trainable_parameters
from diffpipe.train.runtime import Runtime


class TooSlowError(Exception):
    """The forward passes take longer than the caller has time for."""


def activation_bytes(
    stage: Stage, nets: Mapping[str, nn.Module], samples: Callable[[int], Batch], runtime: Runtime
) -> int:
    """Bytes that autograd keeps per sample, in the phase that keeps most: what grows with the batch.

    samples: a batch of so many. It is measured on copies of the networks, since a forward pass may change buffers.
    """
    return activation_bytes_of(stage, {name: copy.deepcopy(net) for name, net in nets.items()}, samples, runtime)


def activation_bytes_of(
    stage: Stage,
    nets: Mapping[str, nn.Module],
    samples: Callable[[int], Batch],
    runtime: Runtime,
    seconds: float = math.inf,
) -> int:
    """The same, on networks that nothing else needs. Raises TooSlowError after so many seconds."""
    end = time.monotonic() + seconds
    trainable = {name: trainable_parameters(net.train()) for name, net in nets.items()}
    with torch.random.fork_rng(devices=[]):
        return max(
            _per_sample(stage, phase, nets, trainable, [samples(1), samples(2)], runtime, end)
            for phase in stage.phases()
        )


def _per_sample(
    stage: Stage,
    phase: Phase,
    nets: Mapping[str, nn.Module],
    trainable: Mapping[str, Sequence[nn.Parameter]],
    batches: Sequence[Batch],
    runtime: Runtime,
    end: float,
) -> int:
    """The difference between two samples and one: copies of weights do not grow with the batch."""
    for name, parameters in trainable.items():
        for parameter in parameters:
            parameter.requires_grad_(name in phase.trains)
    one, two = (_saved_bytes(stage, phase, nets, batch, runtime, end) for batch in batches)
    return max(0, two - one)


def _saved_bytes(
    stage: Stage, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, runtime: Runtime, end: float
) -> int:
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # alive to the end, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        if time.monotonic() > end:
            raise TooSlowError
        kept.append(tensor)
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = runtime.to_device(batch)
    with saved_tensors_hooks(pack, lambda tensor: tensor), runtime.autocast():
        stage.loss(phase, nets, batch, KeyedRNG(0, batch.positions))
    return sum(storages.values())
