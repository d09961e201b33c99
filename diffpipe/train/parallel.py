"""How the processes of a job hold the networks: a full copy on each (DDP), or sharded over them (FSDP2, HSDP)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.train.blocks import blocks
from diffpipe.train.runtime import Runtime

Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class ParallelStrategy:
    """Where parameters, gradients, optimizer state and averages are held.

    mesh: the processes that share one copy, [shard] or [replicate shard]; None where each process holds a full copy.

    Gradients are reduced in float32, whatever autocast computes in. The parameters of a block are gathered in
    autocast's type, except where it needs them in float32 (see `interfaces.Network`): autocast would keep its casts of
    all blocks from the forward to the backward pass. So a sharded run gives the numbers of an unsharded one up to the
    order of sums, and in bfloat16 also up to the rounding of parameters that autocast leaves in float32, such as those
    of a norm.
    """

    runtime: Runtime
    mesh: DeviceMesh | None

    @classmethod
    def of(cls, parallel: Parallel, shard_size: int | None, runtime: Runtime) -> ParallelStrategy:
        """The strategy that the config asks for; `auto` is the launcher's. A collective.

        shard_size: the number of processes that share one copy under hsdp; None: those of a node. Raises UserError
        where the launcher was started with another strategy, or the number of processes is no multiple of `shard_size`.
        """
        device, world = runtime.device.type, runtime.world
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        kind, size = copy_size(parallel, shard_size, world, local, launched_for_fsdp=runtime.launched_for_fsdp)
        if kind == "ddp" or world == 1:
            return cls(runtime, None)
        if kind == "fsdp":
            return cls(runtime, init_device_mesh(device, (world,), mesh_dim_names=("shard",)))
        return cls(runtime, init_device_mesh(device, (world // size, size), mesh_dim_names=("replicate", "shard")))

    @property
    def name(self) -> str:
        """ddp, fsdp or hsdp."""
        return "ddp" if self.mesh is None else ("fsdp", "hsdp")[self.mesh.ndim - 1]

    @property
    def in_buckets(self) -> bool:
        """Whether DDP reduces the gradients in buckets, which it rearranges after a network's first backward pass.

        With three processes or more, the position in a bucket decides the order of the sum. So the first backward pass
        must not count: else a resumed run would take its first step in another arrangement than an uninterrupted one.
        """
        return self.mesh is None and self.runtime.world > 1

    def shard(self, net: nn.Module, *, float32: bool = False) -> None:
        """Shard a network, whose parameters are the same on all processes, in place. Without parameters: unchanged.

        float32: all blocks need their parameters in float32.
        """
        if self.mesh is None or not has_parameters(net):
            return
        # FSDP2 takes no channels_last parameters; the images keep that format, and so do the activations.
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for block in blocks(net):
            fully_shard(block, mesh=self.mesh, mp_policy=self._policy(float32 or getattr(block, "float32", False)))
        fully_shard(net, mesh=self.mesh)

    def _policy(self, float32: bool) -> MixedPrecisionPolicy:
        if float32 or self.runtime.dtype == torch.float32:
            return MixedPrecisionPolicy()
        # Autocast decides for each operator what it computes in: inputs are not cast here.
        return MixedPrecisionPolicy(self.runtime.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network whose backward pass averages the gradients over the processes."""
        return self.runtime.wrap(net) if self.mesh is None and has_parameters(net) else net

    @contextmanager
    def update(self, nets: Sequence[nn.Module], *, penalizes: bool) -> Iterator[None]:
        """Around the passes of one update. Afterwards each process holds its shards alone again.

        penalizes: the update differentiates a gradient once more, and the second backward pass needs the parameters of
        the first one unsharded.
        """
        sharded = _sharded(nets)
        for module in sharded:
            module.set_reshard_after_backward(not penalizes, recurse=False)
        yield
        for module in sharded:
            module.reshard()

    @contextmanager
    def no_sync(self, nets: Sequence[nn.Module]) -> Iterator[None]:
        """Backward passes within it leave the gradients local: for all micro-batches of a step but the last."""
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


def has_parameters(net: nn.Module) -> bool:
    """Whether there is something to train. A network may hold buffers alone, such as statistics set by `start`."""
    return any(True for _ in net.parameters())


def trainable_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes: not those that the network is built with as frozen ones."""
    return [p for p in net.parameters() if p.requires_grad]


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with the shards of all processes. A collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; a whole tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """`whole`, which is the same on all processes, sharded as `tensor` is. Nothing is communicated."""
    if not isinstance(tensor, DTensor):
        return whole
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


def _sharded(nets: Sequence[nn.Module]) -> list[FSDPModule]:
    return [module for net in nets for module in net.modules() if isinstance(module, FSDPModule)]


def copy_size(
    parallel: Parallel, shard_size: int | None, world: int, local: int, *, launched_for_fsdp: bool
) -> tuple[Literal["ddp", "fsdp", "hsdp"], int]:
    """The strategy, and the number of processes that share one copy of the networks.

    local: the processes of a node, which share a copy under hsdp where `shard_size` is None. Raises UserError as
    `ParallelStrategy.of`.
    """
    if launched_for_fsdp and parallel == "ddp":
        raise UserError(
            "accelerate launch was started with FSDP, and train.parallel is ddp; set train.parallel=auto, or launch "
            "without FSDP"
        )
    kind = ("fsdp" if launched_for_fsdp else "ddp") if parallel == "auto" else parallel
    if shard_size is not None and kind != "hsdp":
        raise UserError(f"train.shard_size is for train.parallel=hsdp, and this job is {kind}; leave it out")
    if kind == "ddp" or world == 1:
        return kind, 1
    size = world if kind == "fsdp" else shard_size or local
    if world % size:
        raise UserError(
            f"train.parallel=hsdp: {plural(world, 'process', 'processes')} cannot be divided into copies of {size} "
            f"each; set train.shard_size to a divisor of {world}"
        )
    return kind, size
