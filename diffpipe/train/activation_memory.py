"""The memory that a sample's activations take between the forward and the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from diffpipe.interfaces import Batch, Phase, Stage
from diffpipe.rng import KeyedRNG
from diffpipe.train.parallel import trainable_parameters
from diffpipe.train.runtime import Runtime


def activation_bytes(
    stage: Stage, nets: Mapping[str, nn.Module], samples: Callable[[int], Batch], runtime: Runtime
) -> int:
    """Bytes that autograd keeps per sample, in the phase that keeps most: what grows with the batch.

    samples: a batch of so many. It is measured on copies of the networks, since a forward pass may change buffers.
    """
    copies = {name: copy.deepcopy(net).train() for name, net in nets.items()}
    trainable = {name: trainable_parameters(net) for name, net in copies.items()}
    with torch.random.fork_rng(devices=[]):
        return max(
            _per_sample(stage, phase, copies, trainable, [samples(1), samples(2)], runtime) for phase in stage.phases()
        )


def _per_sample(
    stage: Stage,
    phase: Phase,
    nets: Mapping[str, nn.Module],
    trainable: Mapping[str, Sequence[nn.Parameter]],
    batches: Sequence[Batch],
    runtime: Runtime,
) -> int:
    """The difference between two samples and one: copies of weights do not grow with the batch."""
    for name, parameters in trainable.items():
        for parameter in parameters:
            parameter.requires_grad_(name in phase.trains)
    one, two = (_saved_bytes(stage, phase, nets, batch, runtime) for batch in batches)
    return max(0, two - one)


def _saved_bytes(stage: Stage, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, runtime: Runtime) -> int:
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # alive to the end, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = runtime.to_device(batch)
    with saved_tensors_hooks(pack, lambda tensor: tensor), runtime.autocast():
        stage.loss(phase, nets, batch, KeyedRNG(0, batch.positions))
    return sum(storages.values())
