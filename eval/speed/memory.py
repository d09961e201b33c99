"""Bytes that each process holds under ddp, fsdp and hsdp, counted from the tensors, and bytes of activations.

    accelerate launch --config_file launch/cpu.yaml -m eval.speed.memory
    accelerate launch --config_file launch/cpu.yaml --num_processes 4 -m eval.speed.memory

State is what `Trainer.state()` names, of DTensors the local part, after one step; gradients live only within a step.
Activations are those of one process's share of the global batch under ddp: what the forward pass keeps for the backward
pass (by hooks on saved tensors, without the parameters), and the peak of all that a step allocates, gradients and
temporaries among it (on CPUs counted from the tensors that operators return; on GPUs the allocator says).
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffpipe.train.runtime import Runtime
from eval.speed.subject import Subject, add_arguments, experiment, progress, setting, start, table

KINDS = {"net": "parameters", "ema": "average", "optimizer": "optimizer"}


def held(subject: Subject) -> Counter[str]:
    """Bytes of this process's state, by kind."""
    count: Counter[str] = Counter()
    for name, tensor in subject.trainer.state().items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        count[KINDS[name.partition(".")[0]]] += local.nbytes
    return count


def kept(subject: Subject) -> int:
    """Bytes that a step's forward pass keeps for its backward pass, each storage once, without the parameters."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        subject.step()
    own = {p.untyped_storage().data_ptr() for net in subject.trainer.nets.values() for p in net.parameters()}
    return sum(size for at, size in storages.items() if at not in own)


class Living(TorchDispatchMode):
    """Counts the bytes of the storages that operators have made within it and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        if storage._cdata in self._known or storage._cdata in given:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, at: int, size: int) -> None:
        self._known.discard(at)
        self.now -= size


def peak(subject: Subject) -> int:
    """The most bytes that were there at once of what a step allocates."""
    device = subject.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        subject.step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with Living() as living:
        subject.step()
    return living.peak


def state_row(strategy: str, counts: list[Counter[str]], ddp: int | None, where: str) -> dict[str, str]:
    """The process that holds the most."""
    most = max(counts, key=lambda count: count.total())
    parts = {kind: f"{most[kind] / 1e6:.2f} MB" for kind in KINDS.values()}
    ratio = "" if ddp is None else f"{most.total() / ddp:.4f}"
    return {"layout": f"{strategy}, {where}", **parts, "together": f"{most.total() / 1e6:.2f} MB", "of ddp's": ratio}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--layouts", nargs="+", choices=["ddp", "fsdp", "hsdp"], default=["ddp", "fsdp", "hsdp"])
    parser.add_argument("--shard-size", type=int, default=2, help="processes that share a copy under hsdp (default 2)")
    parser.add_argument("--no-activations", action="store_true", help="the state alone")
    args = parser.parse_args(argv)
    with start(experiment(args)) as runtime:
        states = measure_states(args, runtime)
        activations = [] if args.no_activations else measure_activations(args, runtime)
        if runtime.main:
            print(table(states))
            if activations:
                print("\n" + table(activations))


def measure_states(args: argparse.Namespace, runtime: Runtime) -> list[dict[str, str]]:
    rows, ddp = [], None
    for strategy in progress(args.layouts, "layouts", runtime):
        words = [f"train.parallel={strategy}", *([f"train.shard_size={args.shard_size}"] if strategy == "hsdp" else [])]
        subject = Subject(experiment(args, *words), runtime)
        subject.step()
        counts = runtime.comm.gather(held(subject))
        if strategy == "ddp":
            ddp = max(count.total() for count in counts)
        of = f" in copies of {args.shard_size}" if strategy == "hsdp" else ""
        rows.append(state_row(strategy + of, counts, ddp, f"{runtime.world} processes"))
        subject.forget()
    return rows


def measure_activations(args: argparse.Namespace, runtime: Runtime) -> list[dict[str, str]]:
    rows = []
    for checkpointing in progress(["false", "true"], "activations", runtime):
        words = ("train.parallel=ddp", f"train.activation_checkpointing={checkpointing}")
        subject = Subject(experiment(args, *words), runtime)
        subject.step()
        figures = {"kept for the backward pass": kept(subject), "peak of a step": peak(subject)}
        title = {"train.activation_checkpointing": f"{checkpointing}, {len(subject.batch.images)} images"}
        rows.append(title | {name: f"{size / 1e6:.2f} MB" for name, size in figures.items()})
        rows[-1]["on"] = setting(runtime)
        subject.forget()
    return rows


if __name__ == "__main__":
    main()
