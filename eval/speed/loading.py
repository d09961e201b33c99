"""How often each byte of a checkpoint of 4 processes is read where 2 go on from it, under ddp and under fsdp.

    OMP_NUM_THREADS=1 python -m eval.speed.loading

It starts the jobs that save and load by itself. Before each load the files are dropped from the page cache (which asks
no rights of a user), so that what a process has read from the disk is what /proc/self/io calls read_bytes, for mapped
files, too; on a tmpfs there is no disk, and it says 0. Hashed: what the verification has read, by the system's `read`.
Copied: the bytes of the slices that safetensors was asked for, out of the mapped files. One node; the times are of a
cold cache. Linux only.
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
from eval.speed import jobs
from eval.speed.subject import Subject, add_arguments, experiment, now, start, table

STEP = "step-00000001"


class Reads(NamedTuple):
    """What one process has read of a checkpoint, in bytes, and how long it took, in seconds.

    from_disk: of both parts, by what the kernel counts for this process.
    """

    hashed: int
    copied: int
    from_disk: int
    seconds: float


class CountedSlices:
    """Stands for safetensors' `safe_open` and counts the bytes of the slices that are taken."""

    copied = 0
    _open: Any = staticmethod(safetensors.safe_open)

    def __init__(self, *args: Any, **kwargs: Any):
        self._file = self._open(*args, **kwargs)

    def __enter__(self) -> CountedSlices:
        self._file.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self._file.__exit__(*about)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self._file.get_slice(name))


class CountedSlice:
    def __init__(self, piece: Any):
        self._piece = piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._piece, name)

    def __getitem__(self, at: Any) -> Tensor:
        tensor = self._piece[at]
        CountedSlices.copied += tensor.nbytes
        return tensor


def save(args: argparse.Namespace) -> None:
    of = experiment(args)
    with start(of) as runtime:
        subject = Subject(of, runtime)
        subject.step()
        with AsyncCheckpointer(args.dir, CheckpointConfig(), runtime.comm.new_group()) as checkpointer:
            checkpointer.save(subject.trainer.state(), subject.state())


def load(args: argparse.Namespace) -> None:
    """Load it in turns as training does and, under ddp, a share each that is then broadcast; print all reads."""
    of = experiment(args)
    with start(of) as runtime:
        subject = Subject(of, runtime)
        ways = {"each its own": checkpoints.load}
        if subject.trainer.strategy.mesh is None and runtime.world > 1:
            ways["a share, broadcast"] = load_share_and_broadcast
        safetensors.safe_open = CountedSlices  # pyright: ignore[reportAttributeAccessIssue]
        reads: dict[str, list[list[Reads]]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, function in ways.items():
                reads[way].append(runtime.comm.gather(counted(args.dir / STEP, subject, function)))
        if runtime.main:
            print(json.dumps(reads))


def counted(path: Path, subject: Subject, way: Callable[[Checkpoint, dict[str, Tensor], Communicator], None]) -> Reads:
    runtime, state = subject.runtime, subject.trainer.state()
    runtime.comm.barrier()
    if runtime.main:
        drop_from_cache(path)
    runtime.comm.barrier()
    CountedSlices.copied = 0
    before, since = process_io(), now(runtime)
    found = checkpoints.open_checkpoint(path, runtime.comm)
    hashed = process_io()["rchar"] - before["rchar"]
    way(found, state, runtime.comm)
    seconds = now(runtime) - since
    return Reads(hashed, CountedSlices.copied, process_io()["read_bytes"] - before["read_bytes"], seconds)


def load_share_and_broadcast(checkpoint: Checkpoint, tensors: dict[str, Tensor], comm: Communicator) -> None:
    names = sorted(tensors, key=lambda name: (-tensors[name].nbytes, name))
    checkpoints.load(checkpoint, {name: tensors[name] for name in names[comm.rank :: comm.world]}, Communicator())
    sent = [dist.broadcast(tensors[name], i % comm.world, async_op=True) for i, name in enumerate(names)]
    for each in sent:
        assert each is not None
        each.wait()


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def process_io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def rows(strategy: str, size: int, said: dict[str, list[list[list[float]]]]) -> list[dict[str, str]]:
    """size: the checkpoint's. The counts of the first round, all ranks' (they are the same in all); median times."""
    found = []
    for way, rounds in said.items():
        ranks = [Reads(*each) for each in rounds[0]]  # pyright: ignore[reportArgumentType]
        seconds = statistics.median(max(Reads(*each).seconds for each in ranks) for ranks in rounds)  # pyright: ignore[reportArgumentType]
        row = {"loaded": f"{strategy}, {way}"}
        for what in ("hashed", "copied", "from_disk"):
            each = [getattr(rank, what) / size for rank in ranks]
            parts = " + ".join(f"{part:.3f}" for part in each)
            row[what.replace("_", " ")] = f"{parts} = {sum(each):.3f}"
        found.append(row | {"seconds": f"{seconds:.2f}"})
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind (default %(default)s)")
    parser.add_argument("--dir", type=Path, help="on which disk (default: that of temporary files)")
    parser.add_argument("--role", choices=["save", "load"], help="of the jobs that it starts: leave it out")
    args = parser.parse_args(argv)
    if args.role:
        {"save": save, "load": load}[args.role](args)
        return
    folder = Path(tempfile.mkdtemp(dir=args.dir, prefix="loading-"))
    words = ["--config", args.config, "--dir", folder, "--rounds", args.rounds, *args.overrides]
    try:
        jobs.start("eval.speed.loading", *words, "--role", "save", processes=4, threads=1)
        size = sum(path.stat().st_size for path in (folder / STEP).iterdir())
        found = []
        for strategy in ("ddp", "fsdp"):
            print(f"loading as {strategy}", file=sys.stderr)
            given = [*words, f"train.parallel={strategy}", "--role", "load"]
            said = jobs.start("eval.speed.loading", *given, processes=2, threads=1)
            found += rows(strategy, size, json.loads(said.splitlines()[-1]))
    finally:
        shutil.rmtree(folder)
    print(table(found))
    print(f"\nParts of the checkpoint's {size / 1e6:.2f} MB, of rank 0 + rank 1; {jobs.machine()}")


if __name__ == "__main__":
    main()
