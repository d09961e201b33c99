"""The memory and the traffic of a step and of a score on one of many processes, counted in a single process.

    OMP_NUM_THREADS=2 python -m eval.speed.many_ranks
    OMP_NUM_THREADS=2 python -m eval.speed.many_ranks --ranks 8 --config configs/cifar10/ddpm.yaml

The other processes do not exist: torch's fake backend answers for them at once. So counts are exact and
values are not. A step is of a process's two images under fsdp. Bytes are counted from the outputs of operators,
activations, gathered parameters and gradients together: at the start of the backward pass, and at the peak. Traffic is
what the process receives by all-gathers and gives to reductions. A score is a Fréchet distance, and a kernel distance
beside it.
"""

from __future__ import annotations

import argparse
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffpipe.metrics import evaluate as evaluate_module
from diffpipe.metrics.feature_sets import CHUNK
from diffpipe.metrics.features import Extractor
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from eval.speed.benchmark import NoiseTraining, add_arguments, load_experiment, start_runtime, table
from eval.speed.memory import LiveBytes


@dataclass(frozen=True)
class FakeCommunicator(Communicator):
    """A rank whose peers do not exist, and would send what it sends. `pickled`: the bytes of each gathered object."""

    pickled: list[int] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.pickled.append(len(pickle.dumps(value)))
        return [value] * self.world

    def stack(self, value: Tensor) -> Tensor:
        stacked = super().stack(value)
        return stacked.copy_(value)


@contextmanager
def fake_ranks(runtime: Runtime, world: int, rank: int = 0) -> Iterator[Runtime]:
    """The runtime as one of `world` processes, of which no other exists."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield replace(runtime, comm=FakeCommunicator(rank, world))
    finally:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Counts collectives within it, and the bytes of the larger of their inputs and outputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.partition(".")[0].strip("_").removesuffix("_base")
            self.calls[name] += 1
            self.bytes[name] += max(sum(t.nbytes for t in tree_leaves(a) if isinstance(t, Tensor)) for a in args)
        return func(*args, **(kwargs or {}))


class Counts(NamedTuple):
    """The bytes alive at the start of the backward pass and at the peak, and the collectives of a step or a score."""

    kept: int
    peak: int
    traffic: Traffic
    pickled: int


def count_step(training: NoiseTraining) -> Counts:
    """The counts of a step after the first one, which also makes the optimizer's state."""
    training.step()
    live, traffic, kept = LiveBytes(), Traffic(), []
    (optimizer, *_) = training.trainer.optimizers.values()
    backward = optimizer.backward

    def noted(loss: Tensor) -> None:
        kept.append(live.bytes)
        backward(loss)

    comm: Any = training.runtime.comm
    comm.pickled.clear()
    with mock.patch.object(optimizer, "backward", noted), live, traffic:
        training.step()
    return Counts(kept[0], live.peak, traffic, sum(comm.pickled))


class Noise:
    """Images of noise, as a score takes them."""

    def __init__(self, n: int):
        self.n = n

    def describe(self) -> dict[str, Any]:
        return {}

    def images(self, indices: range) -> Tensor:
        generator = torch.Generator().manual_seed(indices.start)
        return torch.randint(0, 256, (len(indices), 3, 8, 8), dtype=torch.uint8, generator=generator)


def count_score(runtime: Runtime, dim: int, metrics: list[str]) -> Counts:
    """The counts of a score of two chunks of images per rank, in features of `dim` numbers, with a floor."""
    weights = torch.randn(192, dim, generator=torch.Generator().manual_seed(0))
    extractor = Extractor("inception", dim, "", "", lambda images: images.flatten(1).float() @ weights)
    generated, reference, floor = (Noise(2 * CHUNK * runtime.world) for _ in range(3))
    comm: Any = runtime.comm
    comm.pickled.clear()
    # The distances exchange nothing, and take long.
    with LiveBytes() as live, Traffic() as traffic, mock.patch.object(evaluate_module, "_score", return_value=0.0):
        evaluate_module.evaluate(
            generated, reference, floor, metrics, extractors={"inception": extractor}, ranks=runtime.comm
        )
    return Counts(0, live.peak, traffic, sum(comm.pickled))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 512], help="processes (default %(default)s)")
    parser.add_argument("--dim", type=int, default=2048, help="numbers in a feature vector (default %(default)s)")
    args = parser.parse_args(argv)
    steps, scores = [], []
    with start_runtime(load_experiment(args)) as runtime:
        for world in args.ranks:
            with fake_ranks(runtime, world) as rank:
                words = ("train.parallel=fsdp", f"data.batch_size={2 * world}")
                training = NoiseTraining(load_experiment(args, *words), rank)
                parameters = sum(p.numel() for net in training.trainer.nets.values() for p in net.parameters())
                steps.append(_step_row(world, 4 * parameters, count_step(training), rank))
                training.free()
                scores += [_score_row(world, count_score(rank, args.dim, names)) for names in (["fid"], ["fid", "kid"])]
    print(table(steps) + "\n\n" + table(scores))


def _step_row(world: int, parameters: int, counts: Counts, runtime: Runtime) -> dict[str, str]:
    gathered, reduced = counts.traffic.bytes["allgather"], counts.traffic.bytes["reduce_scatter"]
    return {
        "a step of": f"{world} processes, 2 images each, {str(runtime.dtype).removeprefix('torch.')}",
        "parameters": _mb(parameters),
        "alive before the backward pass": _mb(counts.kept),
        "peak": _mb(counts.peak),
        "gathered": _mb(gathered),
        "reduced": _mb(reduced),
        "collectives": str(counts.traffic.calls.total()),
    }


def _score_row(world: int, counts: Counts) -> dict[str, str]:
    metrics = "FID and KID" if counts.traffic.bytes["allgather"] else "FID"
    return {
        "a score of": f"{metrics}, {world} processes, {2 * CHUNK * world} images a set",
        "summed": _mb(counts.traffic.bytes["allreduce"]),
        "gathered": _mb(counts.traffic.bytes["allgather"]),
        "pickled": f"{counts.pickled} B",
        "collectives": str(counts.traffic.calls.total()),
    }


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    main()
