"""The number of times that each byte of a checkpoint of 4 processes is read when 2 resume from it, by ddp and fsdp.

    OMP_NUM_THREADS=1 python -m eval.speed.loading

It starts the jobs that save and load. Before each load the files are dropped from the page cache (which needs no
privileges), so that read_bytes in /proc/self/io counts the bytes that a process reads from the disk, also through
mapped files. On a tmpfs there is no disk, and it is 0. Hashed: the bytes that the verification reads. Copied: the bytes
of the slices that are taken from mapped files by safetensors. One node, cold cache, Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch.distributed as dist
from torch import Tensor

from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator
from eval.speed import launch
from eval.speed.benchmark import NoiseTraining, add_arguments, load_experiment, start_runtime, synchronized_time, table

STEP = "step-00000001"


class Reads(NamedTuple):
    """The bytes that one process read of a checkpoint, and the seconds.

    from_disk: of hashing and copying together, as the kernel counts for this process.
    """

    hashed: int
    copied: int
    from_disk: int
    seconds: float


class CountedSlices:
    """Replaces safetensors' `safe_open` and counts the bytes of the slices that are taken."""

    copied = 0
    _open: Any = staticmethod(safetensors.safe_open)

    def __init__(self, *args: Any, **kwargs: Any):
        self._file = self._open(*args, **kwargs)

    def __enter__(self) -> CountedSlices:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self._file.get_slice(name))


class CountedSlice:
    def __init__(self, tensor_slice: Any):
        self._slice = tensor_slice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slice, name)

    def __getitem__(self, index: Any) -> Tensor:
        tensor = self._slice[index]
        CountedSlices.copied += tensor.nbytes
        return tensor


def save(args: argparse.Namespace) -> None:
    config = load_experiment(args)
    with start_runtime(config) as runtime:
        training = NoiseTraining(config, runtime)
        training.step()
        with AsyncCheckpointer(args.dir, CheckpointConfig(), runtime.comm.new_group()) as checkpointer:
            checkpointer.save(training.trainer.state(), training.state())


def load(args: argparse.Namespace) -> None:
    """Load as training does and, under ddp, also by shares that are broadcast; print the reads of all ranks as JSON."""
    config = load_experiment(args)
    with start_runtime(config) as runtime:
        training = NoiseTraining(config, runtime)
        ways: dict[str, Callable[[Checkpoint, dict[str, Tensor], Communicator], None]] = {
            "each its own": checkpoints.load
        }
        if training.trainer.strategy.mesh is None and runtime.world > 1:
            ways["a share, broadcast"] = load_share_and_broadcast
        safetensors.safe_open = CountedSlices  # pyright: ignore[reportAttributeAccessIssue]
        reads: dict[str, list[list[Reads]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, function in ways.items():
                reads[way].append(runtime.comm.gather(count_reads(args.dir / STEP, training, function)))
        if runtime.main:
            print(json.dumps(reads))


def count_reads(
    path: Path, training: NoiseTraining, load_into: Callable[[Checkpoint, dict[str, Tensor], Communicator], None]
) -> Reads:
    runtime, state = training.runtime, training.trainer.state()
    runtime.comm.barrier()
    if runtime.main:
        drop_from_cache(path)
    runtime.comm.barrier()
    CountedSlices.copied = 0
    before, since = process_io(), synchronized_time(runtime)
    checkpoint = checkpoints.open_checkpoint(path, runtime.comm)
    hashed = process_io()["rchar"] - before["rchar"]
    load_into(checkpoint, state, runtime.comm)
    seconds = synchronized_time(runtime) - since
    return Reads(hashed, CountedSlices.copied, process_io()["read_bytes"] - before["read_bytes"], seconds)


def load_share_and_broadcast(checkpoint: Checkpoint, tensors: dict[str, Tensor], comm: Communicator) -> None:
    names = sorted(tensors, key=lambda name: (-tensors[name].nbytes, name))
    checkpoints.load(checkpoint, {name: tensors[name] for name in names[comm.rank :: comm.world]}, Communicator())
    broadcasts = [dist.broadcast(tensors[name], i % comm.world, async_op=True) for i, name in enumerate(names)]
    for broadcast in broadcasts:
        assert broadcast is not None
        broadcast.wait()


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def process_io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def rows(strategy: str, size: int, reads: dict[str, list[list[list[float]]]]) -> list[dict[str, str]]:
    """A row for each way to load: the first round's counts of all ranks, as parts of the size, and the median time."""
    table_rows = []
    for way, rounds in reads.items():
        ranks = [Reads(*values) for values in rounds[0]]  # pyright: ignore[reportArgumentType]
        seconds = statistics.median(max(Reads(*values).seconds for values in round_) for round_ in rounds)  # pyright: ignore[reportArgumentType]
        row = {"loaded": f"{strategy}, {way}"}
        for field in ("hashed", "copied", "from_disk"):
            parts = [getattr(rank, field) / size for rank in ranks]
            summands = " + ".join(f"{part:.3f}" for part in parts)
            row[field.replace("_", " ")] = f"{summands} = {sum(parts):.3f}"
        table_rows.append(row | {"seconds": f"{seconds:.2f}"})
    return table_rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind (default %(default)s)")
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (default: that of temporary files)")
    parser.add_argument("--role", choices=["save", "load"], help="internal: set for the jobs that it starts")
    args = parser.parse_args(argv)
    if args.role:
        {"save": save, "load": load}[args.role](args)
        return
    folder = Path(tempfile.mkdtemp(dir=args.dir, prefix="loading-"))
    words = ["--config", args.config, "--dir", folder, "--rounds", args.rounds, *args.overrides]
    try:
        launch.run_module("eval.speed.loading", *words, "--role", "save", processes=4, threads=1)
        size = sum(path.stat().st_size for path in (folder / STEP).iterdir())
        results = []
        for strategy in ("ddp", "fsdp"):
            print(f"loading as {strategy}", file=sys.stderr)
            load_words = [*words, f"train.parallel={strategy}", "--role", "load"]
            output = launch.run_module("eval.speed.loading", *load_words, processes=2, threads=1)
            results += rows(strategy, size, json.loads(output.splitlines()[-1]))
    finally:
        shutil.rmtree(folder)
    print(table(results))
    print(f"\nParts of the checkpoint's {size / 1e6:.2f} MB, of rank 0 + rank 1; {launch.machine()}")


if __name__ == "__main__":
    main()
