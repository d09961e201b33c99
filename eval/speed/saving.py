"""What a save costs training: steps with and without a save in flight, and the stall, beside accelerate's save_state.

    OMP_NUM_THREADS=2 python -m eval.speed.saving
    OMP_NUM_THREADS=1 accelerate launch --config_file launch/cpu.yaml -m eval.speed.saving

Real steps of a config's network (on noise for images, without a loader). The kinds of saves take turns, with steps in
between. `AsyncCheckpointer.save` writes, syncs to the disk, hashes, commits and prunes; save_state writes into the page
cache and leaves it there: it is timed as it is, and again with an fsync of what it wrote.

A step is one during a save if a save is in flight, on any process, when it begins and when it ends. What a save costs
is its stall and what the steps beside it take more than they take alone; the CPU's seconds of a save are those of one
that training waits for. On GPUs times are taken when the device is done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus
from eval.speed.jobs import machine
from eval.speed.subject import Subject, add_arguments, experiment, now, progress, setting, start, table


@dataclass
class Times:
    """Seconds, one list an event; `lasted` is how many steps long saves were."""

    quiet: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    extra: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    flights: list[float] = field(default_factory=list)
    synchronous: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    save_state: list[float] = field(default_factory=list)
    save_state_synced: list[float] = field(default_factory=list)


class Bench:
    """The three ways of saving, and steps between them."""

    def __init__(self, subject: Subject, folder: Path):
        self.subject, self.runtime, self.folder = subject, subject.runtime, folder
        comm = self.runtime.comm.new_group()
        self.beside = AsyncCheckpointer(folder / "async", CheckpointConfig(), comm)
        self.waiting = AsyncCheckpointer(folder / "sync", CheckpointConfig.model_validate({"async": False}), comm)
        self.stop_consensus = StopConsensus(self.runtime.comm)
        self.times = Times()
        if subject.trainer.strategy.mesh is None:
            accelerator = self.runtime.accelerator  # it knows the networks already
            for optimizer in subject.trainer.optimizers.values():
                accelerator.prepare_optimizer(optimizer.adamw, device_placement=False)
            for average in subject.trainer.averages.values():
                accelerator.register_for_checkpointing(average.net)

    def step(self) -> float:
        """One step and its boundary, as `diffpipe train` takes them."""
        self.runtime.comm.barrier()
        since = now(self.runtime)
        self.subject.step()
        self.stop_consensus.poll(failed=self.beside.failed)
        return now(self.runtime) - since

    def in_flight(self) -> bool:
        """Whether the thread of a save runs on any rank."""
        return any(self.runtime.comm.gather(any(thread.name == "checkpointer" for thread in threading.enumerate())))

    def save(self, checkpointer: AsyncCheckpointer) -> float:
        """The seconds for which training stands still."""
        self.runtime.comm.barrier()
        since = now(self.runtime)
        checkpointer.save(self.subject.trainer.state(), self.subject.state())
        return time.perf_counter() - since

    def quiet(self, steps: int) -> None:
        for _ in range(steps):
            assert not self.in_flight()
            self.times.quiet.append(self.step())

    def asynchronous(self) -> None:
        since = time.perf_counter()
        self.times.stalls.append(self.save(self.beside))
        steps = []
        while self.in_flight():
            steps.append(self.step())
        self.times.flights.append(time.perf_counter() - since)
        self.beside.wait()
        self.times.during += steps[:-1]  # the last one saw the end of it
        usual = statistics.median(self.times.quiet)
        self.times.extra.append(self.times.stalls[-1] + sum(steps) - len(steps) * usual)

    def synchronous(self) -> None:
        before = time.process_time()
        self.times.synchronous.append(self.save(self.waiting))
        self.times.processor.append(time.process_time() - before)

    def accelerate(self) -> None:
        if self.subject.trainer.strategy.mesh is not None:
            return  # save_state knows nothing of what it has not sharded itself
        self.runtime.comm.barrier()
        since = now(self.runtime)
        out = self.folder / "save_state"
        self.runtime.accelerator.save_state(str(out))
        self.runtime.comm.barrier()
        self.times.save_state.append(time.perf_counter() - since)
        if self.runtime.main:
            sync(out)
        self.runtime.comm.barrier()
        self.times.save_state_synced.append(time.perf_counter() - since)
        if self.runtime.main:
            shutil.rmtree(out)

    def round(self, steps: int) -> None:
        for save in (self.asynchronous, self.synchronous, self.accelerate):
            self.quiet(steps)
            save()


def sync(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def row(name: str, bench: Bench) -> dict[str, str]:
    """All ranks' figures as one row: the medians of all their steps and saves. A collective."""
    parts = bench.runtime.comm.gather(bench.times)
    medians = {
        name: statistics.median(values)
        for name in vars(bench.times)
        if (values := [value for part in parts for value in getattr(part, name)])
    }
    n = {name: len(getattr(bench.times, name)) for name in vars(bench.times)}
    size = bench.runtime.comm.gather(sum(path.stat().st_size for path in newest(bench.folder).iterdir()))[0]
    quiet, during = medians["quiet"], medians.get("during")
    return {
        "network": f"{name}, {size / 1e6:.0f} MB, {setting(bench.runtime)}",
        "step alone": f"{quiet:.3f} s ({n['quiet']})",
        "during a save": "no step fits" if during is None else f"{during:.3f} s ({n['during']})",
        "ratio": "" if during is None else f"{during / quiet:.2f}",
        "a save lasts": f"{medians['flights']:.2f} s, {medians['flights'] / quiet:.1f} steps",
        "stall": f"{medians['stalls']:.3f} s",
        "synchronous": f"{medians['synchronous']:.2f} s",
        "stall/synchronous": f"{medians['stalls'] / medians['synchronous']:.1%}",
        "CPU a save": f"{medians['processor']:.2f} s",
        "a save costs": f"{medians['extra']:.2f} s",
        "save_state": "" if "save_state" not in medians else f"{medians['save_state']:.2f} s",
        "save_state, fsync": "" if "save_state" not in medians else f"{medians['save_state_synced']:.2f} s",
    }


def newest(folder: Path) -> Path:
    return max((folder / "async").glob("step-*"))


def shared_folder(given: Path | None, runtime: Runtime) -> Path:
    """A new folder, the same on all ranks."""
    made = tempfile.mkdtemp(dir=given, prefix="saving-") if runtime.main else ""
    return Path(runtime.comm.gather(made)[0])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind (default %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps before each save (default %(default)s)")
    parser.add_argument("--dir", type=Path, help="on which disk (default: that of temporary files)")
    args = parser.parse_args(argv)
    busy = machine()
    of = experiment(args)
    with start(of) as runtime:
        bench = Bench(Subject(of, runtime), shared_folder(args.dir, runtime))
        bench.round(1)  # warms up: buffers and moments are allocated
        first = bench.times.stalls[0]
        bench.times = Times()
        for _ in progress(range(args.rounds), "rounds", runtime):
            bench.round(args.steps)
        said = row(Path(args.config).parent.name + "/" + Path(args.config).stem, bench)
        if runtime.main:
            print(table([said]))
            print(f"\n{busy}; the first save, which allocates its buffers, stalls for {first:.3f} s")
            shutil.rmtree(bench.folder)


if __name__ == "__main__":
    main()
