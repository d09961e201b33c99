"""The bytes of state that each process holds under ddp, fsdp and hsdp, and the bytes of activations.

    accelerate launch --config_file launch/cpu.yaml -m eval.speed.memory
    accelerate launch --config_file launch/cpu.yaml --num_processes 4 -m eval.speed.memory

The state is that of `Trainer.state()` after one step, of DTensors the local part. Gradients exist only within a step.
Activations are those of one process's share of the global batch under ddp: the bytes that the forward pass saves for
the backward pass (by hooks on saved tensors, without the parameters), and the peak of a step's allocations, gradients
and temporaries included (on CPUs counted from the outputs of operators, on GPUs by the allocator).
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffpipe.train.runtime import Runtime
from eval.speed.benchmark import (
    NoiseTraining,
    add_arguments,
    load_experiment,
    progress,
    setting_in_words,
    start_runtime,
    table,
)

KINDS = {"net": "parameters", "ema": "average", "optimizer": "optimizer"}


def state_bytes(training: NoiseTraining) -> Counter[str]:
    """The bytes of this process's state, by kind."""
    count: Counter[str] = Counter()
    for name, tensor in training.trainer.state().items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        count[KINDS[name.partition(".")[0]]] += local.nbytes
    return count


def saved_bytes(training: NoiseTraining) -> int:
    """The bytes that a forward pass saves for its backward pass: each storage once, without the parameters."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # keeps the storages, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training.step()
    parameters = {p.untyped_storage().data_ptr() for net in training.trainer.nets.values() for p in net.parameters()}
    return sum(size for address, size in storages.items() if address not in parameters)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators allocate within the context and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._count(storage, inputs)
        return out

    def _count(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        if storage._cdata in self._known or storage._cdata in inputs:
            return
        self._known.add(storage._cdata)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.bytes -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of the tensors among nested values: of DTensors this process's part, and none on the meta device."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and not leaf.is_meta:
            yield (leaf._local_tensor if isinstance(leaf, DTensor) else leaf).untyped_storage()


def peak_bytes(training: NoiseTraining) -> int:
    """The peak of the bytes that a step allocates."""
    device = training.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        training.step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live_bytes:
        training.step()
    return live_bytes.peak


def state_row(strategy: str, counts: list[Counter[str]], ddp: int | None, where: str) -> dict[str, str]:
    """The row of the process that holds the most."""
    most = max(counts, key=lambda count: count.total())
    parts = {kind: f"{most[kind] / 1e6:.2f} MB" for kind in KINDS.values()}
    ratio = "" if ddp is None else f"{most.total() / ddp:.4f}"
    return {"strategy": f"{strategy}, {where}", **parts, "together": f"{most.total() / 1e6:.2f} MB", "of ddp's": ratio}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--strategies", nargs="+", choices=["ddp", "fsdp", "hsdp"], default=["ddp", "fsdp", "hsdp"])
    parser.add_argument("--shard-size", type=int, default=2, help="processes that share a copy under hsdp (default 2)")
    parser.add_argument("--no-activations", action="store_true", help="measure only the state")
    args = parser.parse_args(argv)
    with start_runtime(load_experiment(args)) as runtime:
        states = measure_states(args, runtime)
        activations = [] if args.no_activations else measure_activations(args, runtime)
        if runtime.main:
            print(table(states))
            if activations:
                print("\n" + table(activations))


def measure_states(args: argparse.Namespace, runtime: Runtime) -> list[dict[str, str]]:
    rows, ddp = [], None
    for strategy in progress(args.strategies, "strategies", runtime):
        words = [f"train.parallel={strategy}", *([f"train.shard_size={args.shard_size}"] if strategy == "hsdp" else [])]
        training = NoiseTraining(load_experiment(args, *words), runtime)
        training.step()
        counts = runtime.comm.gather(state_bytes(training))
        if strategy == "ddp":
            ddp = max(count.total() for count in counts)
        copies = f" in copies of {args.shard_size}" if strategy == "hsdp" else ""
        rows.append(state_row(strategy + copies, counts, ddp, f"{runtime.world} processes"))
        training.free()
    return rows


def measure_activations(args: argparse.Namespace, runtime: Runtime) -> list[dict[str, str]]:
    rows = []
    for checkpointing in progress(["false", "true"], "activations", runtime):
        words = ("train.parallel=ddp", f"train.activation_checkpointing={checkpointing}")
        training = NoiseTraining(load_experiment(args, *words), runtime)
        training.step()
        figures = {"kept for the backward pass": saved_bytes(training), "peak of a step": peak_bytes(training)}
        title = {"train.activation_checkpointing": f"{checkpointing}, {len(training.batch.images)} images"}
        rows.append(title | {name: f"{size / 1e6:.2f} MB" for name, size in figures.items()})
        rows[-1]["on"] = setting_in_words(runtime)
        training.free()
    return rows


if __name__ == "__main__":
    main()
