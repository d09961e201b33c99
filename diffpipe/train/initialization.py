"""The networks of a new run: drawn from the seed, then set from data where the stage has a `start`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from diffpipe.interfaces import Stage
from diffpipe.rng import fold_in
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime

StartFunction = Callable[[Mapping[str, nn.Module]], None]
"""Sets parameters or buffers of fresh networks, in place, from fixed samples of the training data."""


def draw_networks(stage: Stage, seed: int) -> dict[str, nn.Module]:
    """Fresh networks on the CPU, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_in(seed, "init"))
        return stage.networks()


def initial_networks(stage: Stage, runtime: Runtime, seed: int) -> dict[str, nn.Module]:
    """Fresh networks on this process's device, the same on all ranks."""
    return {name: runtime.place(net) for name, net in draw_networks(stage, seed).items()}


def run_start(nets: Mapping[str, nn.Module], start: StartFunction, seed: int) -> None:
    """Call `start` on fresh networks, in float32 and without gradients."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(fold_in(seed, "start"))
        start(nets)


def start_from_data(nets: Mapping[str, nn.Module], start: StartFunction, seed: int, comm: Communicator) -> None:
    """Call `start` on fresh networks, in float32 and without gradients, then give all ranks rank 0's values.

    Every rank calls it with the same samples, but two kinds of processor may round differently. A collective. A
    UserError on one rank is raised on all.
    """
    comm.raise_on_all_ranks(lambda: run_start(nets, start, seed))
    for net in nets.values():
        for value in itertools.chain(net.parameters(), net.buffers()):
            comm.broadcast(value.data)
