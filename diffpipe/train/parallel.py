"""How networks lie on the processes of a job: a whole copy on each (DDP), or sharded over them (FSDP2, HSDP)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from diffpipe.errors import UserError
from diffpipe.train.blocks import blocks
from diffpipe.train.runtime import Runtime

Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class ParallelStrategy:
    """Where parameters, gradients, optimizer state and averages are.

    mesh: the processes that share a copy, [shard] or [replicate shard]; None where each holds a whole one.

    Sharded parameters are gathered in float32 and gradients reduced in it, whatever autocast computes in: a run gives
    the same numbers sharded and not, up to the order of sums.
    """

    runtime: Runtime
    mesh: DeviceMesh | None

    @classmethod
    def of(cls, parallel: Parallel, shard_size: int | None, runtime: Runtime) -> ParallelStrategy:
        """The layout that the config asks for, or the launcher where that is `auto`. A collective.

        shard_size: processes that share a copy under hsdp; None is those of a node. Raises UserError where the launcher
        was told otherwise, or the processes cannot be divided so.
        """
        kind = _resolved(parallel, runtime)
        if shard_size is not None and kind != "hsdp":
            raise UserError(f"train.shard_size is for train.parallel=hsdp, and this job is {kind}; leave it out")
        device, world = runtime.device.type, runtime.world
        if kind == "ddp" or world == 1:
            return cls(runtime, None)
        if kind == "fsdp":
            return cls(runtime, init_device_mesh(device, (world,), mesh_dim_names=("shard",)))
        size = shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world))
        if world % size:
            raise UserError(
                f"train.parallel=hsdp: {world} processes cannot be divided into copies of {size} each; set "
                f"train.shard_size to a divisor of {world}"
            )
        return cls(runtime, init_device_mesh(device, (world // size, size), mesh_dim_names=("replicate", "shard")))

    @property
    def in_buckets(self) -> bool:
        """Whether gradients are reduced in DDP's buckets, which it lays out anew after a network's first backward pass.

        Of three processes or more the place in a bucket decides the order of the sum: unless that pass is one that does
        not count, a resumed run takes a step in the first layout that the run before took in the second.
        """
        return self.mesh is None and self.runtime.world > 1

    def shard(self, net: nn.Module) -> None:
        """Leave each process its part of the network's parameters, which are alike on all of them by now."""
        if self.mesh is None:
            return
        # FSDP2 takes no channels_last parameters; the images keep that format, and so do the activations.
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for block in blocks(net):
            fully_shard(block, mesh=self.mesh)
        fully_shard(net, mesh=self.mesh)

    def wrap(self, net: nn.Module) -> nn.Module:
        """What training calls: it averages the gradients over the processes in the backward pass."""
        return self.runtime.wrap(net) if self.mesh is None else net

    @contextmanager
    def update(self, nets: Sequence[nn.Module], *, penalizes: bool) -> Iterator[None]:
        """Around the passes of one update, after which the networks' parameters are this process's parts again.

        penalizes: whether a gradient is differentiated once more: what the first backward pass went through has to stay
        whole for the second.
        """
        sharded = _sharded(nets)
        for module in sharded:
            module.set_reshard_after_backward(not penalizes, recurse=False)
        yield
        for module in sharded:
            module.reshard()

    @contextmanager
    def local(self, nets: Sequence[nn.Module]) -> Iterator[None]:
        """Within it, backward passes leave gradients local: for all micro-batches of a step but the last."""
        replicated = [net for net in nets if isinstance(net, DistributedDataParallel)]
        before = [net.require_backward_grad_sync for net in replicated]
        sharded = [net for net in nets if isinstance(net, FSDPModule)]
        for net in replicated:
            net.require_backward_grad_sync = False
        for net in sharded:
            net.set_requires_gradient_sync(False)
        yield
        for net, sync in zip(replicated, before, strict=True):
            net.require_backward_grad_sync = sync
        for net in sharded:
            net.set_requires_gradient_sync(True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with what other processes hold of it. A collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded(nets: Sequence[nn.Module]) -> list[FSDPModule]:
    return [module for net in nets for module in net.modules() if isinstance(module, FSDPModule)]


def _resolved(parallel: Parallel, runtime: Runtime) -> Literal["ddp", "fsdp", "hsdp"]:
    """What `auto` is, and whether it is what the launcher was told."""
    if not runtime.launched_for_fsdp:
        return "ddp" if parallel == "auto" else parallel
    if parallel == "ddp":
        raise UserError(
            "accelerate launch was told to use FSDP, and train.parallel is ddp; set train.parallel=auto, or launch the "
            "job without"
        )
    return "fsdp" if parallel == "auto" else parallel
