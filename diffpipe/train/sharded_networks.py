"""Networks that are made where they are sharded: no process but rank 0 ever holds a whole one.

They are built on the meta device, sharded, and then filled one tensor at a time with the values that rank 0 has drawn.
So the initial bits are those of an unsharded run of the same seed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffpipe.interfaces import Stage
from diffpipe.train.initialization import StartFunction, draw_networks, run_start
from diffpipe.train.parallel import ParallelStrategy, full_tensor, local_tensor, shard_like
from diffpipe.train.runtime import Runtime


def without_values(stage: Stage) -> dict[str, nn.Module]:
    """The stage's networks on the meta device, or on the CPU where one of them cannot be built without values."""
    with torch.random.fork_rng(devices=[]):
        try:
            # Weights that a stage copies into its networks are left out here.
            with torch.device("meta"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*non-meta parameter.*no-op", category=UserWarning)
                nets = stage.networks()
        except (NotImplementedError, RuntimeError):  # an initialization that reads values
            return stage.networks()
        return stage.networks() if any(map(_has_unregistered_meta_tensor, nets.values())) else nets


def _has_unregistered_meta_tensor(net: nn.Module) -> bool:
    return any(isinstance(v, Tensor) and v.is_meta for module in net.modules() for v in vars(module).values())


def networks_of_rank_zero(
    stage: Stage, runtime: Runtime, seed: int, start: StartFunction | None
) -> dict[str, nn.Module]:
    """The whole initial networks on rank 0, on its host unless they are set from data; none on other ranks.

    A collective. Raises UserError on all ranks.
    """

    def initial() -> dict[str, nn.Module]:
        nets = draw_networks(stage, seed)
        if start is None:
            return nets
        nets = {name: runtime.place(net) for name, net in nets.items()}
        run_start(nets, start, seed)
        return nets

    return runtime.comm.raise_on_all_ranks(lambda: initial() if runtime.main else {})


@torch.no_grad()
def fill(nets: Mapping[str, nn.Module], whole: Mapping[str, nn.Module], runtime: Runtime) -> None:
    """Give sharded networks without values those of rank 0's `whole` ones. A collective.

    One tensor at a time is whole on a device.
    """
    for name, net in nets.items():
        net.to_empty(device=runtime.device)
        values = dict(tensors(whole[name])) if runtime.main else {}
        for key, tensor in tensors(net):
            value = values[key] if runtime.main else torch.empty(tensor.shape, dtype=tensor.dtype)
            value = value.detach().to(runtime.device).contiguous()
            runtime.comm.broadcast(value)
            local_tensor(tensor).copy_(local_tensor(shard_like(value, tensor)))


def empty_sharded_networks(stage: Stage, strategy: ParallelStrategy) -> dict[str, nn.Module]:
    """The stage's networks, sharded, on the device, with tensors that are not set yet."""
    nets = without_values(stage)
    for net in nets.values():
        strategy.shard(net)
        net.to_empty(device=strategy.runtime.device)
    return nets


@torch.no_grad()
def unsharded_copies(stage: Stage, nets: Mapping[str, nn.Module], runtime: Runtime) -> dict[str, nn.Module]:
    """Whole copies of sharded networks, frozen and in evaluation mode. A collective."""
    copies = without_values(stage)
    for name, copy in copies.items():
        copy.to_empty(device=runtime.device)
        values = dict(tensors(nets[name]))
        for key, tensor in tensors(copy):
            tensor.copy_(full_tensor(values[key]))
        copies[name] = runtime.place(copy).requires_grad_(False).eval()
    return copies


def tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers by name, those that no checkpoint holds included."""
    return itertools.chain(net.named_parameters(), net.named_buffers())
